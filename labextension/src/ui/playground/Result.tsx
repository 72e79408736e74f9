// The result side: one request's state, answer, time and id.
import type { JSX } from 'preact';
import type { RequestState } from '../../state/request';
import { Button, CopyButton, Status, useNow, type StatusKind } from '../base/parts';
import { duration, seconds, shortId } from '../words';
import { JsonOutput, MediaOutput, TextOutput } from './outputs';

interface ResultProps {
  request: RequestState;
  problems: number;
  onStart?: () => void;
  onAgain: () => void;
  /** Shows what the runner wrote, where the place around has a log. */
  onLogs?: () => void;
}

export function Result(props: ResultProps): JSX.Element {
  const { request } = props;
  if (request.phase === 'idle') {
    return <Idle problems={props.problems} />;
  }
  return (
    <>
      <Head {...props} />
      <Explanation {...props} />
      <Answer request={request} />
      <TimeSplit request={request} />
    </>
  );
}

function Idle({ problems }: { problems: number }): JSX.Element {
  if (problems) {
    return (
      <>
        <div class="fal-row fal-sm">
          <Status kind="warn">Not run</Status>
          <span class="fal-dim">{fieldsToCorrect(problems)}</span>
        </div>
        <div class="fal-sm fal-dim">Nothing was sent.</div>
      </>
    );
  }
  return (
    <div class="fal-empty">
      <strong>No request yet</strong>
      <div>
        Press Run, or <kbd class="fal-mono fal-strong">Shift Enter</kbd> in any field.
      </div>
    </div>
  );
}

function fieldsToCorrect(number: number): string {
  return `${number} ${number === 1 ? 'field' : 'fields'} to correct`;
}

const REASONS: Record<number, string> = {
  200: 'OK',
  201: 'Created',
  204: 'No Content',
  400: 'Bad Request',
  401: 'No valid key',
  403: 'Not allowed',
  404: 'Not found',
  413: 'Too large',
  422: 'not run',
  429: 'Too many requests',
  500: 'in the app',
  502: 'Bad Gateway',
  503: 'No runner',
  504: 'Timed out'
};

function headOf(request: RequestState): { kind: StatusKind; word: string } {
  switch (request.phase) {
    case 'running':
      return { kind: 'busy', word: 'Running' };
    case 'streaming':
      return { kind: 'busy', word: 'Streaming' };
    case 'cancelled':
      return { kind: 'off', word: 'Cancelled' };
    case 'offline':
      return { kind: 'offline', word: 'Not connected' };
    default: {
      const status = request.status ?? 0;
      const kind = status < 400 ? 'ok' : status === 422 ? 'warn' : 'err';
      const reason = REASONS[status] ?? '';
      return { kind, word: status === 422 ? `422, ${reason}` : `${status} ${reason}` };
    }
  }
}

function Head({ request, problems }: ResultProps): JSX.Element {
  const { kind, word } = headOf(request);
  const now = useNow(kind === 'busy' ? 250 : null);
  const running_ms = kind === 'busy' ? performance.now() - request.startedAt : null;
  const time = request.endedAfter !== null ? duration(request.endedAfter) : running_ms !== null && running_ms > 900 && now ? seconds(running_ms / 1_000) : '';
  const note = request.status === 422 && problems ? fieldsToCorrect(problems) : request.phase === 'cancelled' ? `by you after ${time}` : time;
  return (
    <div class="fal-row fal-wrap fal-sm" role="status">
      <Status kind={kind}>{word}</Status>
      <span class="fal-dim fal-num">{note}</span>
      {request.requestId && (
        <span class="fal-row fal-end">
          <span class="fal-dim fal-mono" title={request.requestId}>
            {shortId(request.requestId)}
          </span>
          <CopyButton text={request.requestId} label="Copy request id" />
        </span>
      )}
    </div>
  );
}

/** What a refused, failed or unanswered request means and what to do. */
function Explanation(props: ResultProps): JSX.Element | null {
  const { request } = props;
  if (request.phase === 'offline') {
    const address = request.offline?.address;
    return (
      <div class="fal-stack">
        <div class="fal-strong">No answer from the backend{address ? ` at ${address}` : ''}</div>
        <div class="fal-sm fal-dim">{request.offline?.message}</div>
        <div class="fal-row fal-wrap">
          {props.onStart && <Button dense label="Start backend" icon="play" onClick={props.onStart} />}
          <Button dense label="Run again" icon="refresh" onClick={props.onAgain} />
        </div>
      </div>
    );
  }
  if (request.phase === 'cancelled') {
    return <div class="fal-sm fal-dim">The connection was closed. What had come until then is kept.</div>;
  }
  if (request.phase !== 'done' || (request.status ?? 0) < 400) {
    return null;
  }
  return <Failure {...props} />;
}

const MEANINGS: Record<string, string> = {
  startup_timeout: '`setup()` did not return in time.',
  request_timeout: 'The endpoint took longer than `request_timeout`.',
  runner_scheduling_failure: 'No runner could be started for this app.',
  runner_connection_timeout: 'No runner was free in time.',
  runner_disconnected: 'The runner ended while it worked on this request.',
  runner_connection_refused: 'The runner did not accept the request.',
  runner_incomplete_response: 'The runner ended in the middle of its answer.',
  internal_server_error: 'The endpoint raised. The runner keeps serving.'
};

function Failure(props: ResultProps): JSX.Element {
  const { request, problems } = props;
  const detail = detailOf(request);
  const isInvalid = request.status === 422;
  const meaning = isInvalid
    ? 'The endpoint was not called.'
    : (MEANINGS[request.errorType ?? '']?.replace(/`/g, '') ?? (request.status === 500 ? 'The endpoint raised. Its traceback is in the logs.' : ''));
  return (
    <div class="fal-stack-4">
      {!(isInvalid && problems) && detail && <div class="fal-strong fal-pre">{detail}</div>}
      {meaning && <div class="fal-sm fal-dim">{meaning}</div>}
      {!isInvalid && (
        <div class="fal-row fal-wrap fal-body-gap">
          {props.onLogs && request.status === 500 && <Button dense label="Show logs" icon="logs" onClick={props.onLogs} />}
          <Button dense label="Run again" icon="refresh" onClick={props.onAgain} />
        </div>
      )}
    </div>
  );
}

function detailOf(request: RequestState): string {
  if (request.body.kind === 'json') {
    const value = request.body.value as { detail?: unknown; error?: { message?: unknown } } | null;
    const detail = value?.error?.message ?? value?.detail;
    return typeof detail === 'string' ? detail : request.body.text;
  }
  return request.body.kind === 'text' ? request.body.text.slice(0, 2_000) : '';
}

function Answer({ request }: { request: RequestState }): JSX.Element | null {
  const { body } = request;
  if (request.phase === 'done' && (request.status ?? 0) >= 400) {
    return null;
  }
  switch (body.kind) {
    case 'json':
      return <JsonOutput value={body.value} text={body.text} input={request.image} />;
    case 'text':
      return <TextOutput name="text" text={body.text} />;
    case 'stream':
      return <Stream request={request} />;
    case 'media':
      return <MediaOutput name="result" media={{ url: body.url, type: body.type.split('/')[0] as 'image', note: '' }} input={request.image} />;
    case 'none':
      return request.phase === 'done' ? <div class="fal-sm fal-dim">The answer has no body.</div> : null;
  }
}

function Stream({ request }: { request: RequestState }): JSX.Element | null {
  if (request.body.kind !== 'stream') {
    return null;
  }
  const isLive = request.phase === 'streaming';
  const first = request.headAfter !== null ? `, first after ${duration(request.headAfter)}` : '';
  const note = `${isLive ? 'streaming, ' : ''}${request.body.chunks} chunks${first}`;
  return <TextOutput name={request.body.isJson ? 'events' : 'text'} text={request.body.text} note={note} isLive={isLive} />;
}

const COLOURS: Record<string, { label: string; colour: string }> = {
  queue: { label: 'Queue', colour: 'var(--fal-t-queue)' },
  start: { label: 'Cold start', colour: 'var(--fal-t-cold)' },
  network: { label: 'Network', colour: 'var(--fal-t-net)' },
  run: { label: 'Inference', colour: 'var(--fal-t-run)' }
};

/** Where the time went, as far as the server measured it; the rest of the total is the network. */
function TimeSplit({ request }: { request: RequestState }): JSX.Element | null {
  const known = request.timings.filter(part => part.name in COLOURS && part.ms > 0);
  if (!known.length || request.endedAfter === null) {
    return null;
  }
  const rest = request.endedAfter - known.reduce((sum, part) => sum + part.ms, 0);
  const parts = [...known, { name: 'network', ms: rest }].filter(part => part.ms > 0.05);
  const order = Object.keys(COLOURS);
  parts.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  return (
    <div class="fal-split">
      <div class="fal-split-bar" aria-hidden="true">
        {parts.map(part => (
          <i key={part.name} style={{ flex: `${part.ms} 0 0`, background: COLOURS[part.name]?.colour }} />
        ))}
      </div>
      <dl>
        {parts.map(part => (
          <div key={part.name}>
            <dt>
              <i class="fal-sw" style={{ background: COLOURS[part.name]?.colour }} /> {COLOURS[part.name]?.label}
            </dt>
            <dd>{duration(part.ms)}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}
