#!/bin/sh
# A shell loop as a task, with curl alone. HEADWAY_URL and, where keys are used, HEADWAY_API_KEY.
set -eu
tell() { # METHOD PATH JSON
  curl -fsS -m 10 -X "$1" "${HEADWAY_URL:-http://127.0.0.1:8000}$2" -H "Authorization: Bearer ${token:-${HEADWAY_API_KEY:-}}" --json "$3"
}
field() { sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/"; }
task=$(tell POST /tasks '{"producer": "backup", "total": 3, "unit": "folders"}')
id=$(echo "$task" | field task_id) token=$(echo "$task" | field producer_token)
for n in 1 2 3; do
  sleep "${SECONDS_EACH:-1}" # the work itself
  tell PATCH "/tasks/$id/progress" "{\"attempt\": 1, \"done\": $n}" | grep -q '"cancelled":false' || exit 1
done
tell POST "/tasks/$id/complete" '{"attempt": 1, "summary": {"folders": 3}}' >/dev/null
