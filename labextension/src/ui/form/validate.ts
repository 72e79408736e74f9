// What is wrong with a form's value, one sentence for each field, in the words of the interface.
//
// The tree is walked by the fields as drawn: a union is judged by the alternative that was chosen, so its
// other branches never speak. Leaves are judged by @cfworker/json-schema, which needs no eval.
import { Validator, type OutputUnit, type Schema as CfSchema } from '@cfworker/json-schema';
import type { ListNode, Node, Schema } from './normalise';
import { choiceOf, isRecord, keyOf, toSend, type Path, type Value } from './values';

export type Problems = Record<string, string>;

/** Chosen alternatives of unions by path key; a union that is absent here is judged by its value. */
export type Choices = Record<string, number>;

/** Return the problems of a value by path key. */
export function validate(node: Node, value: Value, choices: Choices, path: Path = [], isRequired = true): Problems {
  if (value === undefined || value === null) {
    return absent(node, value, path, isRequired);
  }
  switch (node.kind) {
    case 'object':
      return isRecord(value)
        ? join(node.fields.map(field => validate(field.node, value[field.name], choices, [...path, field.name], field.isRequired)))
        : say(path, 'Must be an object.');
    case 'dict':
      return isRecord(value)
        ? join(Object.entries(value).map(([key, member]) => validate(node.value, member, choices, [...path, key])))
        : say(path, 'Must be an object.');
    case 'list':
      return Array.isArray(value) ? list(node, value, choices, path) : say(path, 'Must be a list.');
    case 'union': {
      const option = node.options[choices[keyOf(path)] ?? choiceOf(node, value)];
      return option ? validate(option.node, value, choices, path) : {};
    }
    default:
      return leaf(node, value, path);
  }
}

function absent(node: Node, value: Value, path: Path, isRequired: boolean): Problems {
  if ((value === null && node.nullable) || node.kind === 'json') {
    return {};
  }
  return value === null || isRequired ? say(path, 'Must be filled in.') : {};
}

function list(node: ListNode, value: Value[], choices: Choices, path: Path): Problems {
  const own = lengthProblem(node, value.length);
  const items = join(value.map((item, index) => validate(node.item, item, choices, [...path, index])));
  return own ? { ...items, ...say(path, own) } : items;
}

function lengthProblem(node: ListNode, length: number): string | null {
  if (node.minItems === node.maxItems && length !== node.minItems) {
    return `Must have ${node.minItems} items; it has ${length}.`;
  }
  if (length < node.minItems) {
    return `Must have at least ${node.minItems} ${node.minItems === 1 ? 'item' : 'items'}.`;
  }
  return node.maxItems !== null && length > node.maxItems ? `Must have at most ${node.maxItems} items.` : null;
}

const validators = new WeakMap<Schema, Validator>();

function leaf(node: Node, value: Value, path: Path): Problems {
  const validator = validators.get(node.schema) ?? new Validator(node.schema as CfSchema, '2020-12');
  validators.set(node.schema, validator);
  const result = validator.validate(toSend(value));
  const worst = result.errors.find(error => error.keyword in WORDS) ?? result.errors.at(-1);
  return result.valid || !worst ? {} : say(path, sentence(node, worst));
}

type Words = (rule: unknown, schema: Schema) => string;
const WORDS: Record<string, Words> = {
  type: (rule, schema) => typeWords(rule, schema),
  minimum: rule => `Must be at least ${String(rule)}.`,
  maximum: rule => `Must be at most ${String(rule)}.`,
  exclusiveMinimum: rule => `Must be more than ${String(rule)}.`,
  exclusiveMaximum: rule => `Must be less than ${String(rule)}.`,
  multipleOf: rule => `Must be a multiple of ${String(rule)}.`,
  minLength: rule => (rule === 1 ? 'Must be filled in.' : `Must have at least ${String(rule)} characters.`),
  maxLength: rule => `Must have at most ${String(rule)} characters.`,
  pattern: rule => `Must match ${String(rule)}.`,
  enum: rule => `Must be one of ${(rule as unknown[]).map(String).join(', ')}.`,
  const: rule => `Must be ${String(rule)}.`,
  format: rule => `Must be a ${String(rule)}.`,
  required: () => 'A member is missing.'
};

function typeWords(rule: unknown, schema: Schema): string {
  const type = Array.isArray(rule) ? rule.find(name => name !== 'null') : (rule ?? schema['type']);
  const names: Record<string, string> = {
    integer: 'Must be a whole number.',
    number: 'Must be a number.',
    string: 'Must be text.',
    boolean: 'Must be true or false.',
    array: 'Must be a list.',
    object: 'Must be an object.'
  };
  return names[String(type)] ?? `Must be ${String(type)}.`;
}

function sentence(node: Node, error: OutputUnit): string {
  const words = WORDS[error.keyword];
  const isOwn = error.instanceLocation === '#';
  const rule = isOwn ? node.schema[error.keyword] : undefined;
  if (words && rule !== undefined) {
    return words(rule, node.schema);
  }
  return `${error.error.replace(/\.$/, '')} (at ${error.instanceLocation}).`;
}

function say(path: Path, text: string): Problems {
  return { [keyOf(path)]: text };
}

function join(parts: Problems[]): Problems {
  return Object.assign({}, ...parts) as Problems;
}
