/**
 * The types of headway.js: what it takes and gives. Kept by hand; tests/browser/test_client.py holds its exports to
 * those of the module.
 */

export type Status = "uploading" | "queued" | "processing" | "completed" | "failed" | "cancelled";
export type ResultFile = { name: string; size_bytes: number; content_type: string; sha256: string; url: string };
export type Result = { summary: Record<string, unknown>; files: ResultFile[]; truncated?: boolean };
export type TaskError = { type: string; message: string; retryable: boolean };
export type Links = { self?: string; events?: string; upload?: string; cancel?: string; retry?: string; input?: string };

/** A state of the event stream has every field of it that changes, so `{...task, ...state}` is the task now. */
export interface Task {
  task_id: string;
  processor: string;
  filename: string | null;
  filename_as_sent: string | null;
  size_bytes: number | null;
  content_type: string | null;
  options: Record<string, unknown>;
  batch_id: string | null;
  priority: number;
  not_before: string | null;
  status: Status;
  /** 0 to 100, over the whole of the work. */
  progress: number;
  step: number;
  total_steps: number;
  message: string;
  done: number;
  total: number | null;
  unit: string | null;
  /** Units a second. */
  rate: number | null;
  eta_seconds: number | null;
  attempt: number;
  version: number;
  created_at: string;
  started_at: string | null;
  updated_at: string;
  finished_at: string | null;
  /** What the processor shows before its result is there. */
  partial: any;
  result: Result | null;
  error: TaskError | null;
  /** Of a task that waits: 1 is the next one. */
  queue_position: number | null;
  starts_in_seconds: number | null;
  links: Links;
}

export type State = Partial<Task> & Pick<Task, "task_id" | "version" | "status" | "progress">;
export type Processor = { name: string; description: string; accepts: string[]; options: Record<string, any>; needs_file: boolean; alias_of?: string | null };
/** `data` has the `task_id`. */
export type NamedEvent = { type: "log" | "note" | "transfer" | "gap" | "deleted"; id: string; data: any };
/** `waiting`: lost, and being opened again. */
/** `asking`: the stream says nothing, so the server is asked every few seconds. */
export type Connection = "connecting" | "open" | "waiting" | "asking";

/** How a watch ended: a terminal state; `gone`, the server has no such task; or `refused`, and `problem` says why. */
export type End = {
  status: "completed" | "failed" | "cancelled" | "gone" | "refused";
  state: State | null;
  problem: Problem | null;
};

/** `token`: a key, or a task's token, for another origin: sent as `Authorization: Bearer`, the stream read by fetch. */
type Credentials = { token?: Token };
/** A token, or a function that is asked for one before each request; `refused`: the last one is not good any more. */
export type Token = string | ((how?: { refused?: boolean }) => string | Promise<string>);

export interface WatchOptions extends Credentials {
  /** Each state once and in order; the last one is the terminal one. */
  onstate?: (state: State) => void;
  onevent?: (event: NamedEvent) => void;
  /** Once. */
  onend?: (end: End) => void;
  onconnection?: (connection: Connection) => void;
  /** Replay what came after this version; 0 is from the beginning. */
  lastEventId?: string | number;
  /** What is known already: only later states are told, however much is replayed. */
  state?: State;
  /** The task's own address, where it is not the stream's without `/events`. */
  self?: string;
}

export interface WatchAllOptions extends Credentials {
  /** In the order of each task's versions; a reconnect may tell a state again. `id` is where to go on from. */
  onstate?: (state: State, id: string) => void;
  onevent?: (event: NamedEvent) => void;
  /** The server refuses, as it does who is not signed in. */
  onend?: (problem: Problem) => void;
  /** A sign of life; the next one comes within so many seconds. */
  onalive?: (seconds: number) => void;
  onconnection?: (connection: Connection) => void;
  /** Replay what came after this id of the feed. */
  lastEventId?: string | number;
  /** Only this batch's tasks. */
  batchId?: string;
}

export type Watch = { closed: Promise<End>; close: () => void };

export interface Work extends Credentials {
  processor: string;
  options?: Record<string, unknown>;
  batchId?: string;
  signal?: AbortSignal;
}

export interface SubmitOptions extends Work {
  oncreated?: (task: Task) => void;
  onprogress?: (task: Task) => void;
  onevent?: (event: NamedEvent) => void;
  onconnection?: (connection: Connection) => void;
  /** Of an unfinished upload with this file's name and size: it is another file's, so this one is a new task. */
  onanother?: () => void;
}

/** Where the server is: the parent of the folder the module was served from. */
export const BASE: URL;

/** What the server said is wrong (RFC 9457), or status 0 where it could not be asked. */
export class Problem extends Error {
  constructor(body: { status?: number; type?: string; title?: string; detail?: string; errors?: { field: string; message: string }[] });
  status: number;
  /** The last word of the server's problem type, such as `another-file`; empty without one. */
  type: string;
  title: string;
  detail: string;
  errors: { field: string; message: string }[];
  /** Whether the same request may go through later. */
  get passes(): boolean;
}

/** `<task-progress href="/tasks/ID">`. Events: `state`, `end`; their `detail` is the task. */
export class TaskProgress extends HTMLElement {
  href: string;
  token: Token | undefined;
  readonly task: Task | null;
}

declare global {
  interface HTMLElementTagNameMap {
    "task-progress": TaskProgress;
  }
}

/** Sends a file and follows it to its end, whatever that is. Rejects with Problem where the server refused it. */
export function submit(file: File | null, what: SubmitOptions): Promise<Task>;
/** Watches one task's stream (`links.events`) to its end. */
export function watch(url: string | URL, options?: WatchOptions): Watch;
/** Watches all tasks of whoever asks, or a batch's, on one connection. */
export function watchAll(options?: WatchAllOptions): { close: () => void };
/** Makes the task, before a byte of its file is sent. */
export function announce(file: File | null, what: Work): Promise<Task>;
/** Sends what the server does not have yet of a file, and tries again until it has it. Rejects with a Problem of type
    `another-file` where what the server has is not the beginning of this file. */
export function send(task: Task, file: File, how?: { signal?: AbortSignal } & Credentials): Promise<void>;
/** The task whose upload of this file was begun in this browser and not ended, if it was for the same work. The bytes
    decide whether it is this file. It is claimed for `send`: no other tab or file gets it meanwhile. */
export function unfinished(file: File, what: Work & { onanother?: () => void }): Promise<Task | null>;
export function hasEnded(task: { status: string }): boolean;
export function fetchTask(id: string, how?: Credentials): Promise<Task>;
export function fetchProcessors(how?: Credentials): Promise<Processor[]>;
/** Asks the server for JSON. Raises Problem, and only that, unless the `signal` was aborted. */
export function request(url: string | URL, init?: RequestInit & Credentials): Promise<any>;
