// What an app's OpenAPI document says about each of its endpoints.
import { normalise, type Field, type Node, type ObjectNode, type Schema } from './normalise';

/** One callable path and the fields that a call fills. */
export interface Endpoint {
  path: string;
  method: string;
  /** Name of the Python method, for people. */
  name: string;
  description: string | null;
  /** The form: `body` and `query`, as far as the endpoint has them. */
  parts: Record<string, Node>;
}

/** Return the endpoints of a document in its order. */
export function readEndpoints(text: string): Endpoint[] {
  let root: Schema;
  try {
    root = JSON.parse(text) as Schema;
  } catch {
    return [];
  }
  const paths = (root['paths'] ?? {}) as Record<string, Record<string, Schema>>;
  const wanted = Array.isArray(root['x-fal-order-paths']) ? (root['x-fal-order-paths'] as string[]) : Object.keys(paths);
  return wanted.filter(path => path in paths).flatMap(path => readPath(path, paths[path] ?? {}, root));
}

function readPath(path: string, item: Record<string, Schema>, root: Schema): Endpoint[] {
  const methods = ['post', 'get', 'put', 'patch', 'delete'].filter(method => method in item);
  return methods.slice(0, 1).map(method => readOperation(path, method, item[method] as Schema, root));
}

function readOperation(path: string, method: string, operation: Schema, root: Schema): Endpoint {
  const parts: Record<string, Node> = {};
  const query = readQuery((operation['parameters'] ?? []) as Schema[], root);
  if (query.fields.length) {
    parts['query'] = query;
  }
  const content = ((operation['requestBody'] as Schema | undefined)?.['content'] ?? {}) as Record<string, Schema>;
  const schema = content['application/json']?.['schema'] as Schema | undefined;
  if (schema) {
    parts['body'] = normalise(schema, root);
  }
  return {
    path,
    method: method.toUpperCase(),
    name: String(operation['operationId'] ?? operation['summary'] ?? path),
    description: typeof operation['description'] === 'string' ? operation['description'] : null,
    parts
  };
}

function readQuery(parameters: Schema[], root: Schema): ObjectNode {
  const fields: Field[] = parameters
    .filter(parameter => parameter['in'] === 'query')
    .map(parameter => ({
      name: String(parameter['name']),
      isRequired: parameter['required'] === true,
      node: normalise((parameter['schema'] ?? {}) as Schema, root)
    }));
  return { kind: 'object', title: null, description: null, nullable: false, preset: undefined, schema: {}, fields };
}
