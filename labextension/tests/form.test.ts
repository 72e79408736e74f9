// The form's plain modules over what pydantic and FastAPI write.
import assert from 'node:assert/strict';
import test from 'node:test';
import { readEndpoints } from '../src/ui/form/endpoints';
import { placeErrors } from '../src/ui/form/errors422';
import { typeText, type Node, type ObjectNode } from '../src/ui/form/normalise';
import { validate } from '../src/ui/form/validate';
import { initial, initialOn, setAt, toSend, type Value } from '../src/ui/form/values';
import { queryOf } from '../src/ui/playground/query';
import { curl, python } from '../src/ui/playground/snippets';
import { newForm, reduceForm } from '../src/state/form';
import corpus from './corpus.json';

const documents = corpus as Record<string, unknown>;

function fieldOf(name: string): Node {
  const endpoint = readEndpoints(JSON.stringify(documents[name]))[0];
  const body = endpoint?.parts['body'] as ObjectNode;
  assert.equal(body.kind, 'object');
  return (body.fields[0] as { node: Node }).node;
}

const EXPECTED: Record<string, [kind: Node['kind'], type: string, start: unknown]> = {
  text: ['string', 'str', undefined],
  short_text: ['string', 'str, max 3', 'a'],
  bounded_integer: ['number', 'int, 1 to 99', 25],
  open_float: ['number', 'float, from 0', 0.5],
  optional_integer: ['number', 'int, optional', null],
  optional_float_with_value: ['number', 'float, optional', 1.5],
  switch: ['boolean', 'bool', false],
  optional_switch: ['boolean', 'bool, optional', null],
  literal: ['choice', 'enum', 'plain'],
  enum: ['choice', 'enum', 'red'],
  optional_literal: ['choice', 'enum, optional', null],
  model: ['object', 'object', { model: 'landscape', threshold: 0.5 }],
  optional_model: ['object', 'object, optional', null],
  numbers: ['list', 'list[float] × 4', []],
  words: ['list', 'list[str], up to 4', []],
  models: ['list', 'list[object]', []],
  mapping: ['dict', 'dict[str, int]', {}],
  tagged_union: ['union', 'cat | dog', { kind: 'cat', lives: 9 }],
  plain_union: ['union', 'int | str', 1],
  moment: ['string', 'date-time', undefined],
  day: ['string', 'date', '2026-01-02'],
  pair: ['json', 'JSON', [1, 'a']],
  anything: ['json', 'JSON', undefined],
  recursive: ['object', 'object', { name: '', children: [] }]
};

test('every schema of the corpus has its field, its words and its start', () => {
  assert.deepEqual(Object.keys(documents).sort(), Object.keys(EXPECTED).sort());
  for (const [name, [kind, type, start]] of Object.entries(EXPECTED)) {
    const node = fieldOf(name);
    assert.equal(node.kind, kind, name);
    assert.equal(typeText(node), type, name);
    assert.deepEqual(initial(node), start, name);
  }
});

test('a recursive model ends in a JSON box', () => {
  const node = fieldOf('recursive') as ObjectNode;
  const children = node.fields.find(field => field.name === 'children')?.node;
  assert.equal(children?.kind, 'list');
  assert.equal(children?.kind === 'list' && children.item.kind, 'json');
});

test('an optional model that is switched on brings its nested defaults', () => {
  assert.deepEqual(initialOn(fieldOf('optional_model')), { model: 'landscape', threshold: 0.5 });
});

const SENTENCES: [name: string, value: Value, text: string | null][] = [
  ['bounded_integer', 120, 'Must be at most 99.'],
  ['bounded_integer', 0, 'Must be at least 1.'],
  ['bounded_integer', '1x', 'Must be a whole number.'],
  ['bounded_integer', 1.5, 'Must be a whole number.'],
  ['bounded_integer', 7, null],
  ['open_float', 0, 'Must be more than 0.'],
  ['open_float', 'abc', 'Must be a number.'],
  ['short_text', '', 'Must be filled in.'],
  ['short_text', 'abcd', 'Must have at most 3 characters.'],
  ['text', undefined, 'Must be filled in.'],
  ['text', '', null],
  ['optional_integer', null, null],
  ['numbers', [1, 2], 'Must have 4 items; it has 2.'],
  ['numbers', [1, 2, 3, 4], null],
  ['words', ['a', 'b', 'c', 'd', 'e'], 'Must have at most 4 items.'],
  ['literal', 'x', 'Must be one of plain, loud.'],
  ['plain_union', 'x', null],
  ['moment', '2026-01-02T03:04:05Z', null]
];

test('what is wrong is said in one sentence', () => {
  for (const [name, value, text] of SENTENCES) {
    const problems = validate(fieldOf(name), value, {}, ['body', 'x']);
    assert.equal(problems['body/x'] ?? null, text, `${name}: ${JSON.stringify(value)}`);
  }
});

test('a wrong item is said under the item, and a union is judged by what was chosen', () => {
  assert.deepEqual(validate(fieldOf('numbers'), [1, 'x', 3, 4], {}, ['n']), { 'n/1': 'Must be a number.' });
  assert.deepEqual(validate(fieldOf('mapping'), { a: 1, b: 'x' }, {}, ['m']), { 'm/b': 'Must be a whole number.' });
  const pet = fieldOf('tagged_union');
  assert.deepEqual(validate(pet, { kind: 'dog', tricks: [] }, {}, ['p']), {});
  assert.deepEqual(validate(pet, { kind: 'cat', lives: 'x' }, {}, ['p']), { 'p/lives': 'Must be a whole number.' });
  assert.deepEqual(validate(fieldOf('plain_union'), 'x', { p: 0 }, ['p']), { p: 'Must be a whole number.' });
});

test('a union without data keeps what was chosen', () => {
  const node = fieldOf('plain_union');
  const form = reduceForm(newForm({ body: node }), { type: 'choose', path: ['body'], index: 1, value: '' });
  assert.deepEqual(form.choices, { body: 1 });
  assert.deepEqual(validate(node, '', form.choices, ['body']), {});
});

test('errors of a 422 answer find their fields, the rest the banner', () => {
  const pet = fieldOf('tagged_union');
  const words = fieldOf('words');
  const parts: Record<string, Node> = { body: { ...(fieldOf('model') as ObjectNode), fields: [
    { name: 'pet', isRequired: true, node: pet },
    { name: 'words', isRequired: false, node: words },
    { name: 'map', isRequired: false, node: fieldOf('mapping') },
    { name: 'off', isRequired: false, node: fieldOf('optional_model') }
  ] } };
  const value: Value = { body: { pet: { kind: 'dog', tricks: ['x'] }, words: ['a', 'b'], map: { k: 1 }, off: null } };
  const placed = placeErrors(
    [
      { loc: ['body', 'pet', 'dog', 'tricks', 0], msg: 'Input should be a valid string' },
      { loc: ['body', 'words', 1], msg: 'String should have at least 2 characters' },
      { loc: ['body', 'map', 'k'], msg: 'Input should be less than or equal to 99', input: 100 },
      { loc: ['body', 'off', 'threshold'], msg: 'Input should be a valid number' },
      { loc: ['header', 'x'], msg: 'Field required' }
    ],
    parts,
    value,
    {}
  );
  assert.deepEqual(placed.fields, {
    'body/pet/tricks/0': 'Must be text.',
    'body/words/1': 'String should have at least 2 characters.',
    'body/map/k': 'Must be at most 99; you sent 100.'
  });
  assert.equal(placed.banner.length, 2);
});

test('an edit takes back only what was said about that field', () => {
  const form = { ...newForm({}), problems: { 'body/a': 'x', 'body/ab': 'y', 'body/a/0': 'z' } };
  assert.deepEqual(reduceForm(form, { type: 'set', path: ['body', 'a'], value: 1 }).problems, { 'body/ab': 'y' });
});

test('nothing undefined is sent', () => {
  const value = setAt(setAt({}, ['a', 'b'], undefined), ['c', 0, 'd'], 1);
  assert.deepEqual(toSend(value), { a: {}, c: [{ d: 1 }] });
});

test("fal's order wins over the alphabet of a saved notebook", () => {
  const schema = { type: 'object', properties: { a: { type: 'string' }, b: { type: 'string' } }, 'x-fal-order-properties': ['b', 'a'] };
  const text = JSON.stringify({ paths: { '/': { post: { requestBody: { content: { 'application/json': { schema } } } } } } });
  const body = readEndpoints(text)[0]?.parts['body'] as ObjectNode;
  assert.deepEqual(
    body.fields.map(field => field.name),
    ['b', 'a']
  );
});

function withQuery() {
  const parameter = (name: string, required: boolean, schema: object) => ({ name, in: 'query', required, schema });
  const parameters = [
    parameter('x', true, { type: 'integer', title: 'X' }),
    parameter('power', false, { type: 'integer', default: 2, title: 'Power' }),
    parameter('tag', false, { type: 'array', items: { type: 'string' }, default: [] }),
    parameter('note', false, { anyOf: [{ type: 'string' }, { type: 'null' }] }),
    { name: 'token', in: 'header', required: false, schema: { type: 'string' } }
  ];
  const endpoint = readEndpoints(JSON.stringify({ paths: { '/power': { post: { parameters } } } }))[0];
  assert.ok(endpoint);
  return endpoint;
}

test('plain parameters are fields, and go into the query in their order', () => {
  const endpoint = withQuery();
  const query = endpoint.parts['query'] as ObjectNode;
  assert.deepEqual(Object.keys(endpoint.parts), ['query']);
  assert.deepEqual(
    query.fields.map(field => [field.name, field.isRequired]),
    [['x', true], ['power', false], ['tag', false], ['note', false]]
  );
  const start = newForm(endpoint.parts);
  assert.deepEqual(validate(query, (start.value as { query: Value }).query, {}, ['query']), { 'query/x': 'Must be filled in.' });
  let form = reduceForm(start, { type: 'set', path: ['query', 'x'], value: 3 });
  assert.equal(queryOf(endpoint, form.value), '?x=3&power=2');
  form = reduceForm(form, { type: 'set', path: ['query', 'tag'], value: ['a b', 'c&d'] });
  assert.equal(queryOf(endpoint, form.value), '?x=3&power=2&tag=a+b&tag=c%26d');
});

test('a 422 of the query lands under its field, and snippets carry the query', () => {
  const endpoint = withQuery();
  const form = reduceForm(newForm(endpoint.parts), { type: 'set', path: ['query', 'x'], value: 3 });
  const placed = placeErrors([{ loc: ['query', 'x'], msg: 'Input should be a valid integer', input: 'a' }], endpoint.parts, form.value, {});
  assert.deepEqual(placed, { fields: { 'query/x': 'Must be a whole number; you sent a.' }, banner: [] });
  const call = { url: `http://h/run/a/b/power${queryOf(endpoint, form.value)}`, method: 'POST', body: undefined, needsKey: false };
  assert.equal(curl(call), "curl -X POST 'http://h/run/a/b/power?x=3&power=2'");
  assert.match(python(call), /"http:\/\/h\/run\/a\/b\/power\?x=3&power=2"/);
  assert.doesNotMatch(python(call), /json=/);
});

test('an endpoint without parameters has no query', () => {
  const endpoint = readEndpoints(JSON.stringify({ paths: { '/': { post: {} } } }))[0];
  assert.ok(endpoint);
  assert.equal(queryOf(endpoint, newForm(endpoint.parts).value), '');
});
