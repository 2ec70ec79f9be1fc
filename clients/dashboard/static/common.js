// What the mosaic and the large view share: asking the dashboard for a change, and keeping lists without losing what has the focus.

// Sends what a camera shall look for; an empty string, or the sentence that says why not.
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

// Text that changes only when it is another: a selection in it survives, and readers aloud stay silent.
export function said(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// One child of `list` for each item, from a template; children stay where they are, and so does the focus.
export function listed(list, template, items, fill) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  while (list.children.length < items.length) {
    list.append(document.querySelector(template).content.firstElementChild.cloneNode(true));
  }
  items.forEach((item, i) => fill(list.children[i], item));
}
