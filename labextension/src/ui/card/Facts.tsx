// What an app is made of, on one line or as a list.
import type { JSX } from 'preact';
import type { AppDetail } from '../../api/wire.gen';
import { readEndpoints } from '../form/endpoints';
import type { Host } from '../host';
import { bytes, count } from '../words';
import type { Facts } from './saved';

/** The facts of a live app in the form in which they are saved. */
export function factsOf(detail: AppDetail): Facts {
  const sockets = socketsIn(detail.openapi);
  return {
    endpoints: detail.endpoints.map(endpoint => ({ method: sockets.has(endpoint.path) ? 'WS' : 'POST', path: endpoint.path, name: endpoint.method })),
    machine: detail.machine_types.join(', ') || null,
    requirements: detail.requirements.flat(),
    captures: detail.captures
  };
}

let last: { text: string; paths: Set<string> } | null = null;

/** Return the paths that are spoken to over websockets; a card is drawn more often than its document changes. */
function socketsIn(text: string): Set<string> {
  if (last?.text !== text) {
    const sockets = readEndpoints(text).filter(endpoint => endpoint.socket);
    last = { text, paths: new Set(sockets.map(endpoint => endpoint.path)) };
  }
  return last.paths;
}

export function FactsLine({ facts, host }: { facts: Facts; host: Host }): JSX.Element | null {
  const { endpoints, machine, requirements, captures } = facts;
  if (!endpoints.length && !machine) {
    return null;
  }
  return (
    <div class="fal-row fal-base fal-wrap fal-sm fal-facts">
      {endpoints.length > 0 && (
        <Fact name={endpoints.length === 1 ? 'Endpoint' : 'Endpoints'}>
          {endpoints.slice(0, 6).map(endpoint => (
            <code key={endpoint.path}>
              {endpoint.method} {endpoint.path}
            </code>
          ))}
        </Fact>
      )}
      {machine && <Fact name="Machine">{machine}</Fact>}
      {requirements.length > 0 && (
        <Fact name="Requires">
          {requirements.slice(0, 6).map(line => (
            <code key={line}>{line}</code>
          ))}
          {requirements.length > 6 && <span class="fal-dim">and {requirements.length - 6} more</span>}
        </Fact>
      )}
      <Captures captures={captures} host={host} />
    </div>
  );
}

const SHOWN = 5;
/** Code that comes along is no news; values may be large, old, or private. */
const CODE = ['class', 'function', 'module'];

function Captures({ captures, host }: { captures: Facts['captures']; host: Host }): JSX.Element | null {
  const values = captures.filter(capture => !CODE.includes(capture.kind));
  const code = captures.filter(capture => CODE.includes(capture.kind));
  const more = Math.max(0, values.length - SHOWN);
  const rest = [more ? `${more} more` : '', code.length ? count(code.length, 'definition') : ''].filter(Boolean).join(' and ');
  if (!values.length) {
    return null;
  }
  return (
    <Fact name="Captured">
      {values.slice(0, SHOWN).map(capture => (
        <Captured key={capture.name} capture={capture} host={host} />
      ))}
      {rest && (
        <span class="fal-dim" title={[...values.slice(SHOWN), ...code].map(capture => capture.name).join(', ')}>
          and {rest}
        </span>
      )}
    </Fact>
  );
}

function Fact(props: { name: string; children: preact.ComponentChildren }): JSX.Element {
  return (
    <span class="fal-row fal-base fal-row-4 fal-wrap">
      <span class="fal-dim">{props.name}</span> {props.children}
    </span>
  );
}

function Captured({ capture, host }: { capture: Facts['captures'][number]; host: Host }): JSX.Element {
  const cell = capture.cell;
  const size = capture.size_bytes !== null ? bytes(capture.size_bytes) : '';
  return (
    <span class="fal-row fal-base fal-row-4" title={capture.kind}>
      <code>{capture.name}</code>
      <span class="fal-dim">
        {size}
        {cell?.execution_count != null ? ' from' : ''}
      </span>
      {cell?.execution_count != null && <CellLink label={`In [${cell.execution_count}]`} cellId={cell.cell_id} line={null} host={host} />}
    </span>
  );
}

/** A link to a cell where the place around can go there, else its name. */
export function CellLink(props: { label: string; cellId: string | null; line: number | null; host: Host }): JSX.Element {
  const { host, cellId, line } = props;
  if (!host.goTo || !cellId) {
    return <span>{props.label}</span>;
  }
  return (
    <button type="button" class="fal-link" onClick={() => host.goTo?.({ cell_id: cellId, line })}>
      {props.label}
    </button>
  );
}
