// @ts-check
/**
 * Making and finding elements. Data becomes text and properties here, never markup: names, messages and results come
 * from strangers, and nothing of theirs is ever parsed as HTML.
 */

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Partial<HTMLElementTagNameMap[Tag]>} [properties]
 * @param {(Node | string)[]} [children] strings become text
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

/**
 * The element of index.html with this id.
 *
 * @template {HTMLElement} Kind
 * @param {string} id
 * @param {new () => Kind} kind
 * @returns {Kind}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new TypeError(`index.html has no ${kind.name} #${id}`);
  return found;
}

/** Sets a text only where it differs: a screen reader hears no change that is none. @param {HTMLElement} where @param {string} text */
export function setText(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/** A link only if it stays on http(s): a `javascript:` address is not followed, whoever wrote it. @param {string} url */
export function safeHref(url) {
  const { href, protocol } = new URL(url, document.baseURI);
  return protocol === "https:" || protocol === "http:" ? href : "";
}
