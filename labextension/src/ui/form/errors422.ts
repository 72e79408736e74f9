// Where a 422 answer's errors belong in the form.
//
// pydantic's `loc` carries union tags and type names (`body, pet, dog, tricks, 0`): it is walked against
// the fields and the value; steps that exist in neither are passed over, and an error that finds no field is
// shown above the form.
import type { Node } from './normalise';
import { choiceOf, getAt, isRecord, keyOf, type Path, type Value } from './values';
import type { Choices, Problems } from './validate';

/** Errors under their fields, and those that have none. */
export interface Placed {
  fields: Problems;
  banner: string[];
}

interface Detail {
  loc?: unknown[];
  msg?: string;
  input?: unknown;
}

/** Return where each error of an answer's `detail` is shown; parts are the form's roots by name. */
export function placeErrors(detail: unknown, parts: Record<string, Node>, value: Value, choices: Choices): Placed {
  const placed: Placed = { fields: {}, banner: [] };
  if (!Array.isArray(detail)) {
    return { fields: {}, banner: detail === undefined ? [] : [typeof detail === 'string' ? detail : JSON.stringify(detail)] };
  }
  for (const item of detail as Detail[]) {
    const path = find(item.loc ?? [], parts, value, choices);
    const text = words(item);
    if (path) {
      placed.fields[keyOf(path)] ??= text;
    } else {
      placed.banner.push(`${(item.loc ?? []).map(String).join('.')}: ${text}`);
    }
  }
  return placed;
}

function find(loc: unknown[], parts: Record<string, Node>, value: Value, choices: Choices): Path | null {
  const [part, ...steps] = loc;
  const root = typeof part === 'string' ? parts[part] : undefined;
  return root ? walk(root, [String(part)], steps, value, choices) : null;
}

/** Go as deep as the steps lead; null when nothing of them was found. */
function walk(node: Node, path: Path, steps: unknown[], value: Value, choices: Choices): Path | null {
  let place = { node, path };
  let isFound = steps.length === 0;
  for (const step of steps) {
    const next = descend(place.node, place.path, step, value, choices);
    if (next) {
      place = next;
      isFound = true;
    }
  }
  const isHidden = place.path.some((_, end) => end > 0 && getAt(value, place.path.slice(0, end)) === null);
  return isFound && !isHidden ? place.path : null;
}

function descend(node: Node, path: Path, step: unknown, value: Value, choices: Choices): { node: Node; path: Path } | null {
  switch (node.kind) {
    case 'object': {
      const field = node.fields.find(candidate => candidate.name === String(step));
      return field ? { node: field.node, path: [...path, field.name] } : null;
    }
    case 'list':
      return typeof step === 'number' ? { node: node.item, path: [...path, step] } : null;
    case 'dict': {
      const members = getAt(value, path);
      return isRecord(members) && String(step) in members ? { node: node.value, path: [...path, String(step)] } : null;
    }
    case 'union': {
      const chosen = node.options[choices[keyOf(path)] ?? choiceOf(node, getAt(value, path))];
      return chosen ? descend(chosen.node, path, step, value, choices) : null;
    }
    default:
      return null;
  }
}

const OPENINGS: [RegExp, string][] = [
  [/^Input should be greater than or equal to (.+)$/, 'Must be at least $1'],
  [/^Input should be less than or equal to (.+)$/, 'Must be at most $1'],
  [/^Input should be greater than (.+)$/, 'Must be more than $1'],
  [/^Input should be less than (.+)$/, 'Must be less than $1'],
  [/^Input should be a valid integer.*$/, 'Must be a whole number'],
  [/^Input should be a valid number.*$/, 'Must be a number'],
  [/^Input should be a valid string$/, 'Must be text'],
  [/^Field required$/, 'Must be filled in'],
  [/^Value error, /, '']
];

function words(item: Detail): string {
  let text = item.msg ?? 'Not valid';
  for (const [pattern, replacement] of OPENINGS) {
    text = text.replace(pattern, replacement);
  }
  const isShort = ['number', 'string', 'boolean'].includes(typeof item.input) && String(item.input).length < 40;
  const sent = isShort && text.startsWith('Must be') && item.input !== '' ? `; you sent ${String(item.input)}` : '';
  return `${text}${sent}.`.replace(/\.\.$/, '.');
}
