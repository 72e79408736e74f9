// What an app's OpenAPI document says about each of its endpoints.
import { normalise, type Field, type Node, type ObjectNode, type Schema } from './normalise';

/** What an endpoint says of itself that is spoken to over a websocket. Source: fal SDK, `x-fal-protocol`. */
export interface Socket {
  /** With fal's realtime messages, or an App's own. */
  isRealtime: boolean;
  /** Each message is answered by one, so that answers find their messages. */
  isUnary: boolean;
  isJson: boolean;
}

/** One callable path and the fields that a call fills. */
export interface Endpoint {
  path: string;
  method: string;
  /** Name of the Python method, for people. */
  name: string;
  description: string | null;
  /** The form: `body` and `query`, as far as the endpoint has them. */
  parts: Record<string, Node>;
  /** null: called by HTTP. */
  socket: Socket | null;
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
  const wanted = Array.isArray(root['x-fal-order-paths']) ? (root['x-fal-order-paths'] as string[]) : [];
  const ordered = [...wanted.filter(path => path in paths), ...Object.keys(paths).filter(path => !wanted.includes(path))];
  return ordered.flatMap(path => readPath(path, paths[path] ?? {}, root));
}

function readPath(path: string, item: Record<string, Schema>, root: Schema): Endpoint[] {
  const protocol = item['x-fal-protocol'];
  if (protocol) {
    // The `post` beside it is there for its schema; nothing answers it.
    const operation = readOperation(path, 'post', item['post'] ?? {}, root);
    const socket = readSocket(protocol);
    if (socket.isRealtime && !operation.parts['body']) {
      operation.parts['body'] = normalise({ title: 'Message', default: {} }, root);
    }
    return [{ ...operation, method: 'WS', name: String(protocol['operationId'] ?? path), socket }];
  }
  const methods = ['post', 'get', 'put', 'patch', 'delete'].filter(method => method in item);
  return methods.slice(0, 1).map(method => readOperation(path, method, item[method] as Schema, root));
}

function readSocket(protocol: Schema): Socket {
  const config = (protocol['config'] ?? {}) as Schema;
  const mode = protocol['realtimeMode'];
  return {
    isRealtime: protocol['type'] === 'realtime',
    // An endpoint that keeps only the newest inputs leaves some unanswered, one that batches answers many at once.
    isUnary: mode === 'unary' && !config['buffering'] && (config['maxBatchSize'] ?? 1) === 1,
    isJson: String(protocol['contentType'] ?? '').includes('json')
  };
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
    parts,
    socket: null
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
