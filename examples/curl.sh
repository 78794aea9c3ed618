#!/bin/sh
# A file submitted and followed with curl alone: curl.sh FILE [PROCESSOR]
# HEADWAY_URL says where the platform is, HEADWAY_API_KEY the key, if it asks for one.
set -eu
file=$1
processor=${2:-checksum}
url=${HEADWAY_URL:-http://127.0.0.1:8000}

ask() {
  curl --fail-with-body --silent --show-error \
    ${HEADWAY_API_KEY:+-H "Authorization: Bearer $HEADWAY_API_KEY"} "$@"
}

# A refusal is JSON that says what is wrong.
task=$(ask -F "file=@$file" -F "processor=$processor" "$url/tasks") || { echo "$task" >&2; exit 1; }
id=$(printf %s "$task" | sed 's/.*"task_id":"\([0-9a-f]*\)".*/\1/')

# Lines for people, while they are made; without this Accept it is Server-Sent Events.
ask --no-buffer -H 'Accept: text/plain' "$url/tasks/$id/events"

# The whole task, with its result.
ask "$url/tasks/$id"
echo
