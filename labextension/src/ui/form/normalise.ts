// From the JSON schemas that pydantic and FastAPI write to the few kinds of field that the form can draw.
//
// `$ref` is inlined, `anyOf: [X, null]` becomes a nullable X, `allOf: [X]` becomes X. What is not
// understood (tuples, recursion, patternProperties) becomes a JSON box: every schema can be filled in.

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json | undefined };
export type Schema = { [key: string]: unknown };

interface Common {
  title: string | null;
  description: string | null;
  /** null may be sent. */
  nullable: boolean;
  /** undefined: no default. */
  preset: Json | undefined;
  /** The schema with references inlined, for the validator. */
  schema: Schema;
}

/** What a text is the address of. */
export type MediaKind = 'image' | 'audio' | 'video' | 'file';

export type StringNode = Common & { kind: 'string'; isLong: boolean; format: string | null; maxLength: number | null; media: MediaKind | null };
export type NumberNode = Common & { kind: 'number'; isInteger: boolean; min: number | null; max: number | null; step: number };
export type BooleanNode = Common & { kind: 'boolean' };
export type ChoiceNode = Common & { kind: 'choice'; options: Json[] };
export type ConstNode = Common & { kind: 'const'; value: Json };
export type ListNode = Common & { kind: 'list'; item: Node; minItems: number; maxItems: number | null };
export type ObjectNode = Common & { kind: 'object'; fields: Field[] };
export type DictNode = Common & { kind: 'dict'; value: Node };
export type UnionNode = Common & { kind: 'union'; options: { label: string; node: Node }[]; tag: string | null };
export type JsonNode = Common & { kind: 'json' };
export type Node =
  | StringNode
  | NumberNode
  | BooleanNode
  | ChoiceNode
  | ConstNode
  | ListNode
  | ObjectNode
  | DictNode
  | UnionNode
  | JsonNode;

/** A named member of an object. */
export interface Field {
  name: string;
  isRequired: boolean;
  node: Node;
}

const DEEPEST = 12;

/** Return the field for a schema; `root` holds what its references point to. */
export function normalise(schema: Schema, root: Schema): Node {
  return toNode(schema, root, []);
}

function toNode(schema: Schema, root: Schema, trail: string[]): Node {
  const opened = open(schema, root, trail);
  if (!opened) {
    return jsonNode(schema, root);
  }
  const { body, seen } = opened;
  const { rest, nullable } = withoutNull(body);
  if (rest !== body) {
    return nullableNode(body, rest, nullable, root, seen);
  }
  const common = commonOf(body, root);
  return { ...kindOf(body, root, seen, common), nullable };
}

function nullableNode(outer: Schema, rest: Schema, nullable: boolean, root: Schema, trail: string[]): Node {
  const inner = toNode(rest, root, trail);
  return {
    ...inner,
    nullable: nullable || inner.nullable,
    title: text(outer['title']) ?? inner.title,
    description: text(outer['description']) ?? inner.description,
    preset: 'default' in outer ? (outer['default'] as Json) : inner.preset
  };
}

function kindOf(body: Schema, root: Schema, trail: string[], common: Common): Node {
  if ('const' in body) {
    return { ...common, kind: 'const', value: body['const'] as Json };
  }
  if (Array.isArray(body['enum'])) {
    return { ...common, kind: 'choice', options: body['enum'] as Json[] };
  }
  const alternatives = (body['oneOf'] ?? body['anyOf']) as Schema[] | undefined;
  if (alternatives) {
    return unionNode(body, alternatives, root, trail, common);
  }
  switch (body['type']) {
    case 'string':
      return stringNode(body, common);
    case 'integer':
    case 'number':
      return numberNode(body, common);
    case 'boolean':
      return { ...common, kind: 'boolean' };
    case 'array':
      return listNode(body, root, trail, common);
    case 'object':
      return objectNode(body, root, trail, common);
    default:
      return { ...common, kind: 'json' };
  }
}

function stringNode(body: Schema, common: Common): Node {
  const maxLength = count(body['maxLength']);
  const format = text(body['format']);
  const ui = (body['ui'] ?? {}) as Schema;
  const isNamedLong = /prompt|text|body|content|description|message|document/i.test(common.title ?? '');
  const isLong = ui['field'] === 'textarea' || (!format && (isNamedLong || (maxLength ?? 0) > 200));
  return { ...common, kind: 'string', isLong, format, maxLength, media: MEDIA.find(kind => kind === ui['field']) ?? null };
}

const MEDIA: MediaKind[] = ['image', 'audio', 'video', 'file'];
const NAMED = /(?:^|_)(image|video|audio|file|mask)s?_urls?$/;
const LINK = /(?:^|_)(api|base|callback|home|link|origin|page|proxy|redirect|referer|repo|server|site|webhook|website)_urls?$/;

/** Mark a member as a file where its name says so, or its model is fal's own for files. */
function marked(name: string, schema: Schema, siblings: Record<string, Schema>): Schema {
  const isMarked = typeof schema['ui'] === 'object' && schema['ui'] !== null && 'field' in schema['ui'];
  const named = NAMED.exec(name)?.[1];
  const isFile = named !== undefined || (/_urls?$/.test(name) && !LINK.test(name)) || (name === 'url' && 'content_type' in siblings);
  if (isMarked || !isFile) {
    return schema;
  }
  const kind = named === 'mask' || (name === 'url' && 'width' in siblings) ? 'image' : (named ?? 'file');
  return { ...schema, ui: { ...(schema['ui'] as Schema | undefined), field: kind } };
}

function numberNode(body: Schema, common: Common): Node {
  const isInteger = body['type'] === 'integer';
  const unit = isInteger ? 1 : 0;
  const min = count(body['minimum']) ?? above(body['exclusiveMinimum'], unit);
  const max = count(body['maximum']) ?? above(body['exclusiveMaximum'], -unit);
  const span = min !== null && max !== null ? max - min : null;
  const fraction = span ? 10 ** Math.floor(Math.log10(span / 50)) : 0.1;
  const step = count(body['multipleOf']) ?? (isInteger ? 1 : fraction);
  return { ...common, kind: 'number', isInteger, min, max, step };
}

function above(value: unknown, by: number): number | null {
  const bound = count(value);
  return bound === null ? null : bound + by;
}

function listNode(body: Schema, root: Schema, trail: string[], common: Common): Node {
  if (body['prefixItems'] || !body['items']) {
    return { ...common, kind: 'json' };
  }
  // A list of addresses is marked as a whole: what it says holds for each.
  const items = body['items'] as Schema;
  const item = toNode(items['type'] === 'string' && body['ui'] ? { ...items, ui: body['ui'] } : items, root, trail);
  return { ...common, kind: 'list', item, minItems: count(body['minItems']) ?? 0, maxItems: count(body['maxItems']) };
}

function objectNode(body: Schema, root: Schema, trail: string[], common: Common): Node {
  const properties = body['properties'] as Record<string, Schema> | undefined;
  if (!properties) {
    const values = body['additionalProperties'];
    const isDict = typeof values === 'object' && values !== null && !body['patternProperties'];
    return isDict ? { ...common, kind: 'dict', value: toNode(values as Schema, root, trail) } : { ...common, kind: 'json' };
  }
  const required = new Set((body['required'] as string[] | undefined) ?? []);
  const fields = orderOf(body, properties).map(name => ({
    name,
    isRequired: required.has(name),
    node: toNode(marked(name, properties[name] as Schema, properties), root, trail)
  }));
  return { ...common, kind: 'object', fields };
}

/** Saving a notebook sorts keys, so fal's explicit order wins. */
function orderOf(body: Schema, properties: Record<string, Schema>): string[] {
  const names = Object.keys(properties);
  const wanted = body['x-fal-order-properties'];
  if (!Array.isArray(wanted)) {
    return names;
  }
  const first = wanted.filter((name): name is string => typeof name === 'string' && name in properties);
  return [...first, ...names.filter(name => !first.includes(name))];
}

function unionNode(body: Schema, alternatives: Schema[], root: Schema, trail: string[], common: Common): Node {
  const nodes = alternatives.map(alternative => toNode(alternative, root, trail));
  const values = nodes.map(node => (node.kind === 'const' ? [node.value] : node.kind === 'choice' ? node.options : null));
  if (values.every(value => value !== null)) {
    return { ...common, kind: 'choice', options: values.flat() };
  }
  const tag = text((body['discriminator'] as Schema | undefined)?.['propertyName']);
  return { ...common, kind: 'union', tag, options: nodes.map(node => ({ label: unionLabel(node, tag), node })) };
}

function unionLabel(node: Node, tag: string | null): string {
  const tagged = node.kind === 'object' && tag ? node.fields.find(field => field.name === tag)?.node : undefined;
  const fixed = tagged?.kind === 'const' ? tagged.value : tagged?.preset;
  return typeof fixed === 'string' ? fixed : node.kind === 'object' ? (node.title ?? 'object') : typeText(node);
}

/** Follow references and single-member allOf; null where that does not end. */
function open(schema: Schema, root: Schema, trail: string[]): { body: Schema; seen: string[] } | null {
  let body = schema;
  const seen = [...trail];
  for (let depth = 0; depth < DEEPEST; depth++) {
    const reference = body['$ref'];
    if (typeof reference === 'string') {
      const target = lookUp(reference, root);
      if (!target || seen.includes(reference)) {
        return null;
      }
      seen.push(reference);
      const { $ref: _, ...beside } = body;
      body = { ...target, ...beside };
    } else if (Array.isArray(body['allOf']) && body['allOf'].length === 1) {
      const { allOf, ...beside } = body;
      body = { ...((allOf as Schema[])[0] as Schema), ...beside };
    } else {
      return { body, seen };
    }
  }
  return null;
}

function lookUp(reference: string, root: Schema): Schema | null {
  let found: unknown = root;
  for (const step of reference.replace(/^#\//, '').split('/')) {
    found = (found as Schema | undefined)?.[step.replace(/~1/g, '/').replace(/~0/g, '~')];
  }
  return (found as Schema | undefined) ?? null;
}

function withoutNull(body: Schema): { rest: Schema; nullable: boolean } {
  for (const key of ['anyOf', 'oneOf']) {
    const all = body[key] as Schema[] | undefined;
    const some = all?.filter(alternative => alternative['type'] !== 'null');
    if (all && some && some.length < all.length) {
      const { [key]: _, ...beside } = body;
      return { rest: some.length === 1 ? { ...beside, ...(some[0] as Schema) } : { ...beside, [key]: some }, nullable: true };
    }
  }
  const types = body['type'];
  if (Array.isArray(types)) {
    const some = types.filter(type => type !== 'null');
    return { rest: { ...body, type: some.length === 1 ? some[0] : some }, nullable: some.length < types.length };
  }
  return { rest: body, nullable: false };
}

function commonOf(body: Schema, root: Schema): Common {
  return {
    title: text(body['title']),
    description: text(body['description']),
    nullable: false,
    preset: body['default'] as Json | undefined,
    schema: { ...body, components: root['components'], $defs: root['$defs'] ?? body['$defs'] }
  };
}

function jsonNode(schema: Schema, root: Schema): Node {
  return { ...commonOf(schema, root), kind: 'json' };
}

function text(value: unknown): string | null {
  return typeof value === 'string' && value ? value : null;
}

function count(value: unknown): number | null {
  return typeof value === 'number' ? value : null;
}

/** Say what may be filled in, in Python's words: `list[float] × 64`, `int, 1 to 99`. */
export function typeText(node: Node): string {
  const suffix = node.nullable ? ', optional' : '';
  switch (node.kind) {
    case 'string':
      return (node.media ?? node.format ?? 'str') + (node.maxLength ? `, max ${node.maxLength}` : '') + suffix;
    case 'number':
      return (node.isInteger ? 'int' : 'float') + rangeText(node) + suffix;
    case 'boolean':
      return 'bool' + suffix;
    case 'choice':
      return 'enum' + suffix;
    case 'const':
      return 'const';
    case 'list':
      return `list[${typeText(node.item)}]${lengthText(node)}${suffix}`;
    case 'object':
      return 'object' + suffix;
    case 'dict':
      return `dict[str, ${typeText(node.value)}]${suffix}`;
    case 'union':
      return node.options.map(option => option.label).join(' | ') + suffix;
    case 'json':
      return 'JSON' + suffix;
  }
}

function rangeText(node: NumberNode): string {
  if (node.min !== null && node.max !== null) {
    return `, ${node.min} to ${node.max}`;
  }
  return node.min !== null ? `, from ${node.min}` : node.max !== null ? `, to ${node.max}` : '';
}

function lengthText(node: ListNode): string {
  if (node.maxItems !== null && node.maxItems === node.minItems) {
    return ` × ${node.maxItems}`;
  }
  return node.maxItems !== null ? `, up to ${node.maxItems}` : '';
}
