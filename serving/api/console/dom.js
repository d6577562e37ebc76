// HTML elements by id, and made by properties and text alone: nothing that a server says is ever parsed as markup.

export const byId = (id) => document.getElementById(id);

export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}
