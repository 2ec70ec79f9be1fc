// Shared by the mosaic and the large view: requests that change a camera, and updates of lists that keep the focus.

// Sends new classes or exemplars of a camera; returns an empty string, or the reason of a refusal.
export async function ask(name, what, body) {
  try {
    const answer = await fetch(`api/cameras/${encodeURIComponent(name)}/${what}`, {
      method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    return answer.ok ? "" : (await answer.json()).detail;
  } catch {
    return "the dashboard does not answer";
  }
}

// The address of a camera's latest picture, for a tile in a small size.
export const picture = ({ name, frame }, small) =>
  `api/cameras/${encodeURIComponent(name)}/frame.jpg?n=${frame}${small ? "&small=1" : ""}`;

// Sets a text only if it differs: a selection in it is kept, and screen readers do not repeat it.
export function said(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Gives `list` one child per item, from a template; existing children stay in place, and so does the focus.
export function listed(list, template, items, fill) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  while (list.children.length < items.length) {
    list.append(document.querySelector(template).content.firstElementChild.cloneNode(true));
  }
  items.forEach((item, i) => fill(list.children[i], item));
}
