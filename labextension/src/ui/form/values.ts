// Values of the form: what it starts with, how one is changed, and what is sent.
//
// `undefined` means "nothing filled in" and is not sent. A number box keeps text that is no number,
// so that the person can go on typing; the validator says what is wrong with it.
import type { Json, Node } from './normalise';

export type Path = (string | number)[];
export type Value = Json | undefined;

/** Name a place in the form; pydantic's numbers and a form's strings meet as text. */
export function keyOf(path: Path): string {
  return path.join('/');
}

/** Return what a field holds before anyone touched it. */
export function initial(node: Node): Value {
  if (node.preset !== undefined) {
    return node.kind === 'object' && isRecord(node.preset) ? { ...objectValue(node), ...node.preset } : node.preset;
  }
  if (node.nullable) {
    return null;
  }
  switch (node.kind) {
    case 'const':
      return node.value;
    case 'boolean':
      return false;
    case 'object':
      return objectValue(node);
    case 'list':
      return node.item.kind === 'number' ? [] : Array.from({ length: node.minItems }, () => initial(node.item) ?? null);
    case 'dict':
      return {};
    case 'union':
      return node.options[0] ? initial(node.options[0].node) : undefined;
    default:
      return undefined;
  }
}

/** Return what a switched-on field holds, its own default of null aside. */
export function initialOn(node: Node): Value {
  return initial({ ...node, nullable: false, preset: node.preset === null ? undefined : node.preset });
}

function objectValue(node: Node & { kind: 'object' }): { [key: string]: Value } {
  const value: { [key: string]: Value } = {};
  for (const field of node.fields) {
    const start = initial(field.node);
    if (start !== undefined) {
      value[field.name] = start;
    }
  }
  return value;
}

export function isRecord(value: unknown): value is { [key: string]: Value } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Return the value at a path, undefined where there is none. */
export function getAt(value: Value, path: Path): Value {
  let found: Value = value;
  for (const step of path) {
    if (Array.isArray(found)) {
      found = found[Number(step)];
    } else if (isRecord(found)) {
      found = found[String(step)];
    } else {
      return undefined;
    }
  }
  return found;
}

/** Return a copy with the value at a path replaced. */
export function setAt(value: Value, path: Path, next: Value): Value {
  const [step, ...rest] = path;
  if (step === undefined) {
    return next;
  }
  if (typeof step === 'number') {
    const list = Array.isArray(value) ? [...value] : [];
    list[step] = setAt(list[step], rest, next) ?? null;
    return list;
  }
  const record = isRecord(value) ? { ...value } : {};
  record[step] = setAt(record[step], rest, next);
  return record;
}

/** Return which alternative of a union a value belongs to; 0 where none fits. */
export function choiceOf(node: Node & { kind: 'union' }, value: Value): number {
  const found = node.options.findIndex(option => fits(option.node, value, node.tag));
  return found < 0 ? 0 : found;
}

function fits(node: Node, value: Value, tag: string | null): boolean {
  switch (node.kind) {
    case 'string':
      return typeof value === 'string';
    case 'number':
      return typeof value === 'number' && (!node.isInteger || Number.isInteger(value));
    case 'boolean':
      return typeof value === 'boolean';
    case 'choice':
      return node.options.includes(value ?? null);
    case 'const':
      return node.value === value;
    case 'list':
      return Array.isArray(value);
    case 'object':
      return isRecord(value) && fitsObject(node, value, tag);
    case 'dict':
      return isRecord(value);
    default:
      return false;
  }
}

function fitsObject(node: Node & { kind: 'object' }, value: { [key: string]: Value }, tag: string | null): boolean {
  if (tag) {
    const field = node.fields.find(candidate => candidate.name === tag);
    return field !== undefined && fits(field.node, value[tag], null);
  }
  return node.fields.every(field => !field.isRequired || field.name in value);
}

/** Return the value as it is sent: nothing that is undefined, in any depth. */
export function toSend(value: Value): Json | undefined {
  if (Array.isArray(value)) {
    return value.map(item => toSend(item) ?? null);
  }
  if (isRecord(value)) {
    const pairs = Object.entries(value)
      .map(([key, member]) => [key, toSend(member)] as const)
      .filter(([, member]) => member !== undefined);
    return Object.fromEntries(pairs) as Json;
  }
  return value;
}

/** Return the addresses of images in a value. */
export function imagesIn(node: Node, value: Value): string[] {
  if (node.kind === 'string') {
    return node.media === 'image' && typeof value === 'string' && value ? [value] : [];
  }
  if (node.kind === 'list' && Array.isArray(value)) {
    return value.flatMap(item => imagesIn(node.item, item));
  }
  return node.kind === 'object' && isRecord(value) ? node.fields.flatMap(field => imagesIn(field.node, value[field.name])) : [];
}
