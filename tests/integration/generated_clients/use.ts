// A program with the client that is generated from /openapi.json: `node use.js URL`. It compiles only if the types are
// those that it relies on.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Task = components["schemas"]["Task"];

const client = createClient<paths>({ baseUrl: process.argv[2] ?? "" });

async function ended(id: string): Promise<Task> {
  for (;;) {
    const { data, error } = await client.GET("/tasks/{task_id}", { params: { path: { task_id: id } } });
    if (!data) throw new Error(error.detail);
    if (data.finished_at !== null) return data;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const submitted = await client.POST("/tasks", {
  body: { processor: "checksum", options: "{}", file: "one two three" },
  bodySerializer: (body) => {
    const form = new FormData();
    if ("processor" in body) form.set("processor", body.processor); // a producer has none
    if ("file" in body && body.file) form.set("file", new Blob([body.file]), "a.txt");
    return form;
  },
});
if (!submitted.data) throw new Error(submitted.error.detail);
const task = await ended(submitted.data.task_id);
const sha256: unknown = task.result?.summary["sha256"];

const refused = await client.POST("/tasks", { body: { processor: "nothing", options: {} } });
const problem: string | undefined = refused.error?.type;
const field: string | undefined = refused.error?.errors?.[0]?.field;

console.log(JSON.stringify({ status: task.status, attempt: task.attempt, sha256, problem, field }));
