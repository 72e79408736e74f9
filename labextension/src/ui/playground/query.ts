// The part of a call that goes into the address.
import type { Endpoint } from '../form/endpoints';
import { isRecord, toSend, type Value } from '../form/values';

/** Return `?x=1&y=2` in the endpoint's own order, empty where nothing is to be said; lists repeat their name. */
export function queryOf(endpoint: Endpoint, value: Value): string {
  const root = endpoint.parts['query'];
  const query = toSend(isRecord(value) ? value['query'] : undefined);
  if (root?.kind !== 'object' || !isRecord(query)) {
    return '';
  }
  const pairs = root.fields.flatMap(field => {
    const member = query[field.name];
    const items = Array.isArray(member) ? member : [member];
    return items.filter(item => item !== null && item !== undefined).map(item => [field.name, String(item)]);
  });
  return pairs.length ? `?${new URLSearchParams(pairs).toString()}` : '';
}
