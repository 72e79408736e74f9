// The call in the form as curl and as Python; never with a key in it.
import type { Json } from '../form/normalise';
import { isRecord } from '../form/values';

/** What a snippet is made from. */
export interface SnippetCall {
  url: string;
  method: string;
  body: Json | undefined;
  needsKey: boolean;
}

/** The call for a shell. */
export function curl(call: SnippetCall): string {
  const lines = [`curl -X ${call.method} ${quote(call.url)}`];
  if (call.needsKey) {
    lines.push('-H "Authorization: Key $FAL_KEY"');
  }
  if (call.body !== undefined) {
    lines.push('-H "Content-Type: application/json"', `-d ${quote(JSON.stringify(call.body))}`);
  }
  return lines.join(' \\\n  ');
}

function quote(text: string): string {
  return `'${text.replace(/'/g, `'\\''`)}'`;
}

/** The call for Python with httpx. */
export function python(call: SnippetCall): string {
  const lines = [...(call.needsKey ? ['import os', ''] : []), 'import httpx', ''];
  lines.push(`response = httpx.${call.method.toLowerCase()}(`, `    ${literal(call.url)},`);
  if (call.needsKey) {
    lines.push('    headers={"Authorization": f"Key {os.environ[\'FAL_KEY\']}"},');
  }
  if (call.body !== undefined) {
    lines.push(`    json=${literal(call.body, 1)},`);
  }
  lines.push('    timeout=60,', ')', 'response.raise_for_status()', 'print(response.json())');
  return lines.join('\n');
}

const WIDTH = 88;

/** A JSON value as a Python literal, on one line where it fits. */
export function literal(value: Json | undefined, depth = 0): string {
  if (value === null || value === undefined) {
    return 'None';
  }
  if (typeof value === 'boolean') {
    return value ? 'True' : 'False';
  }
  if (typeof value === 'string' || typeof value === 'number') {
    return JSON.stringify(value);
  }
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map(item => literal(item, depth + 1))
    : Object.entries(isRecord(value) ? value : {}).map(([key, member]) => `${JSON.stringify(key)}: ${literal(member, depth + 1)}`);
  const [open, close] = isList ? ['[', ']'] : ['{', '}'];
  const flat = open + parts.join(', ') + close;
  if (flat.length + depth * 4 <= WIDTH || parts.length === 0 || (isList && value.every(item => typeof item === 'number'))) {
    return flat;
  }
  const indent = '    '.repeat(depth + 1);
  return `${open}\n${parts.map(part => indent + part + ',').join('\n')}\n${'    '.repeat(depth)}${close}`;
}
