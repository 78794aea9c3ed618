"""The box around a child: namespaces, Landlock, seccomp, and the keeper that puts them up."""
