// Work in Node as a task: node report.mjs. HEADWAY_URL and, where keys are used, HEADWAY_API_KEY.
const url = process.env.HEADWAY_URL ?? "http://127.0.0.1:8000";
let token = process.env.HEADWAY_API_KEY;
const tell = async (method, path, said) => {
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(url + path, { method, headers, body: JSON.stringify(said) });
  return answer.ok ? answer.json() : Promise.reject(new Error(await answer.text()));
};
const { task_id, producer_token } = await tell("POST", "/tasks", { producer: "node-report", total: 3 });
token = producer_token;
for (let done = 1; done <= 3; done++) {
  if ((await tell("PATCH", `/tasks/${task_id}/progress`, { attempt: 1, done })).cancelled) process.exit(1);
}
await tell("POST", `/tasks/${task_id}/complete`, { attempt: 1, summary: { rows: 3 } });
