// @ts-check
/**
 * A form made from a processor's options (JSON Schema as pydantic writes it). It knows integer, number, string,
 * boolean, enum and const, each of them nullable; what it does not know is asked for as JSON. A field left as it was
 * is not sent, so the server's default counts.
 */

import { element } from "./dom.js";
import { label } from "./units.js";

/** @typedef {Record<string, any>} Schema */
/** @typedef {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} Control */
/** @typedef {{name: string, schema: Schema, required: boolean, control: Control, complaint: HTMLElement}} Field */

export class OptionsForm {
  /** @param {HTMLElement} room where the fields go */
  constructor(room) {
    this.root = room;
    /** @type {Field[]} */
    this.fields = [];
  }

  /** @param {Schema} schema */
  draw(schema) {
    const required = new Set(schema.required ?? []);
    this.fields = [];
    this.root.replaceChildren();
    for (const [name, raw] of Object.entries(schema.properties ?? {})) {
      const resolved = resolve(raw, schema.$defs ?? {});
      const id = `option-${name}`;
      const control = controlFor(resolved, required.has(name));
      control.id = id;
      control.name = name;
      const complaint = element("p", { className: "complaint", id: `${id}-complaint`, hidden: true });
      const hint = hintFor(resolved);
      const about = element("p", { className: "hint", id: `${id}-hint`, textContent: hint, hidden: !hint });
      control.setAttribute("aria-describedby", `${about.id} ${complaint.id}`);
      const caption = element("label", { htmlFor: id, textContent: label(name) });
      const check = control instanceof HTMLInputElement && control.type === "checkbox";
      const row = element("div", { className: check ? "field check" : "field" });
      row.append(...(check ? [control, caption] : [caption, control]), about, complaint);
      this.root.append(row);
      this.fields.push({ name, schema: resolved, required: required.has(name), control, complaint });
    }
    this.root.hidden = this.fields.length === 0;
  }

  /** What differs from the defaults. @returns {Record<string, unknown>} */
  values() {
    /** @type {Record<string, unknown>} */
    const values = {};
    for (const { name, schema, required, control } of this.fields) {
      const value = valueOf(schema, control);
      if (value === undefined) continue;
      if (required || JSON.stringify(value) !== JSON.stringify(schema.default)) values[name] = value;
    }
    return values;
  }

  /**
   * Shows each complaint of the server beside its field, and gives back those that belong to none.
   *
   * @param {{field: string, message: string}[]} errors
   */
  complain(errors) {
    this.forgive();
    return errors.filter(({ field, message }) => {
      const parts = field.split(".");
      const found = this.fields.find(({ name }) => parts.includes(name) && parts.includes("options"));
      if (!found) return true;
      found.complaint.textContent = message;
      found.complaint.hidden = false;
      found.control.setAttribute("aria-invalid", "true");
      return false;
    });
  }

  forgive() {
    for (const { control, complaint } of this.fields) {
      complaint.hidden = true;
      control.removeAttribute("aria-invalid");
    }
  }
}

/** Follows `$ref` and folds `anyOf: [X, null]` into X with `nullable`. @param {Schema} schema @param {Schema} defs @returns {Schema} */
function resolve(schema, defs) {
  const branches = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (typeof schema.$ref === "string") return { ...resolve(defs[schema.$ref.split("/").pop() ?? ""] ?? {}, defs), ...schema };
  if (Array.isArray(schema.type)) {
    const types = schema.type.filter((/** @type {string} */ type) => type !== "null");
    return { ...schema, type: types.length === 1 ? types[0] : undefined, nullable: types.length < schema.type.length };
  }
  if (!Array.isArray(branches)) return schema;
  const real = branches.filter((/** @type {Schema} */ branch) => branch.type !== "null");
  const nullable = real.length < branches.length;
  return real.length === 1 ? { ...resolve(real[0], defs), ...schema, nullable } : { ...schema, nullable };
}

/** @param {Schema} schema @param {boolean} required @returns {Control} */
function controlFor(schema, required) {
  const choices = schema.enum ?? (schema.const === undefined ? null : [schema.const]);
  const before = schema.default;
  if (choices || (schema.type === "boolean" && schema.nullable)) {
    const select = element("select", { required: required && !schema.nullable });
    if (schema.nullable || before === undefined) select.append(new Option("(not set)", ""));
    for (const choice of choices ?? [true, false])
      select.append(new Option(choices ? String(choice) : choice ? "yes" : "no", JSON.stringify(choice)));
    select.value = before === undefined || before === null ? "" : JSON.stringify(before);
    return select;
  }
  if (schema.type === "boolean") return element("input", { type: "checkbox", checked: before === true });
  if (schema.type === "integer" || schema.type === "number") {
    const input = element("input", { type: "number", step: schema.type === "integer" ? "1" : "any", required });
    input.inputMode = schema.type === "integer" ? "numeric" : "decimal";
    if (schema.minimum !== undefined) input.min = String(schema.minimum);
    if (schema.maximum !== undefined) input.max = String(schema.maximum);
    if (schema.type === "integer" && schema.exclusiveMinimum !== undefined) input.min = String(schema.exclusiveMinimum + 1);
    if (schema.type === "integer" && schema.exclusiveMaximum !== undefined) input.max = String(schema.exclusiveMaximum - 1);
    if (typeof before === "number") input.value = String(before);
    if (schema.nullable) input.placeholder = "not set";
    return input;
  }
  if (schema.type === "string") {
    const input = element("input", { type: "text", required, autocomplete: "off", spellcheck: false });
    if (schema.maxLength !== undefined) input.maxLength = schema.maxLength;
    if (schema.minLength !== undefined) input.minLength = schema.minLength;
    if (typeof before === "string") input.value = before;
    if (schema.nullable) input.placeholder = "not set";
    return input;
  }
  const area = element("textarea", { rows: 3, spellcheck: false, required });
  if (before !== undefined && before !== null) area.value = JSON.stringify(before);
  return area;
}

/** @param {Schema} schema */
function hintFor({ description, type, minimum, maximum }) {
  const range =
    type !== "integer" && type !== "number" ? ""
    : minimum !== undefined && maximum !== undefined ? `${minimum} to ${maximum}`
    : "";
  const text = description ? description.charAt(0).toUpperCase() + description.slice(1) : "";
  return [text, range].filter(Boolean).join(text.endsWith(".") ? " " : " · ");
}

/** `undefined`: leave it to the server. @param {Schema} schema @param {Control} control @returns {unknown} */
function valueOf(schema, control) {
  if (control instanceof HTMLInputElement && control.type === "checkbox") return control.checked;
  const text = control.value;
  if (text === "" && !(schema.type === "string" && typeof schema.default === "string" && !schema.enum))
    return schema.nullable && schema.default !== null && schema.default !== undefined ? null : undefined;
  if (control instanceof HTMLSelectElement) return JSON.parse(text);
  if (control instanceof HTMLInputElement) return control.type === "number" ? Number(text) : text;
  try {
    return JSON.parse(text);
  } catch {
    return text; // the server says what is wrong with it
  }
}
