// What a session brought: how it stands, the newest answer as what it is, and the list of its messages.
import type { JSX } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { middle, type Frame, type SessionState } from '../../state/session';
import { Icon, Status, useNow, type StatusKind } from '../base/parts';
import { bytes, duration, seconds } from '../words';
import { JsonOutput, Output } from './outputs';

export function SessionResult({ session, isUnary }: { session: SessionState; isUnary: boolean }): JSX.Element {
  const [chosen, choose] = useState<number | null>(null);
  useEffect(() => choose(null), [session.startedAt]);
  if (!session.startedAt) {
    return (
      <div class="fal-empty">
        <strong>No session yet</strong>
        <div>
          Press Connect, then send the form as often as you like. <kbd class="fal-mono fal-strong">Shift Enter</kbd> does both.
        </div>
      </div>
    );
  }
  const answer = session.frames.find(frame => frame.number === chosen) ?? session.frames.filter(frame => frame.way === 'in').at(-1);
  return (
    <>
      <Head session={session} isUnary={isUnary} />
      <Ending session={session} />
      {answer && <JsonOutput value={answer.value} text={JSON.stringify(answer.value, null, 2)} />}
      {session.frames.length > 0 && <Frames session={session} chosen={answer?.number ?? null} onChoose={choose} />}
    </>
  );
}

function headOf(session: SessionState): { kind: StatusKind; word: string } {
  if (session.phase === 'connecting') {
    return { kind: 'busy', word: 'Connecting' };
  }
  if (session.phase === 'open') {
    return { kind: 'ok', word: 'Connected' };
  }
  if (session.openAfter === null) {
    return { kind: 'err', word: 'Not connected' };
  }
  const isFailure = session.problem !== null && session.problem.error !== 'TIMEOUT';
  return isFailure ? { kind: 'err', word: 'Ended by an error' } : { kind: 'off', word: 'Disconnected' };
}

function Head({ session, isUnary }: { session: SessionState; isUnary: boolean }): JSX.Element {
  const { kind, word } = headOf(session);
  const now = useNow(session.phase === 'closed' ? null : 500);
  const lasted_ms = session.closedAfter ?? (now ? performance.now() - session.startedAt : 0);
  const trip = isUnary ? middle(session.trips) : null;
  return (
    <div class="fal-row fal-wrap fal-sm">
      <span role="status">
        <Status kind={kind}>{word}</Status>
      </span>
      <span class="fal-dim fal-num">{lasted_ms > 900 ? seconds(lasted_ms / 1_000) : ''}</span>
      {session.openAfter !== null && <span class="fal-dim fal-num">open after {duration(session.openAfter)}</span>}
      {trip !== null && <span class="fal-num fal-end">median round trip {duration(trip)}</span>}
    </div>
  );
}

/** Why a session ended that nobody here ended. */
function Ending({ session }: { session: SessionState }): JSX.Element | null {
  if (session.problem) {
    const isQuiet = session.problem.error === 'TIMEOUT';
    return (
      <div class="fal-stack-4">
        <div class={isQuiet ? 'fal-sm fal-dim' : 'fal-strong fal-pre'}>{session.problem.reason || session.problem.error}</div>
        {!isQuiet && session.problem.error === 'INTERNAL_ERROR' && <div class="fal-sm fal-dim">The endpoint raised. Its traceback is in the logs.</div>}
      </div>
    );
  }
  if (session.phase !== 'closed' || !session.end || session.end.code === 1000) {
    return null;
  }
  const meaning = session.end.code === 1012 ? 'The runner was replaced. Connect again.' : session.end.reason || `The connection was closed with code ${session.end.code}.`;
  return <div class="fal-sm fal-dim">{meaning}</div>;
}

function Frames({ session, chosen, onChoose }: { session: SessionState; chosen: number | null; onChoose: (number: number) => void }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    if (follows.current && box.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [session.frames]);
  const onScroll = (event: Event): void => {
    const place = event.currentTarget as HTMLElement;
    follows.current = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
  };
  const hidden = session.sent + session.received > session.frames.length ? `, the last ${session.frames.length} shown` : '';
  return (
    <Output icon="logs" name="messages" note={`${session.sent} sent, ${session.received} received${hidden}`}>
      <div ref={box} class="fal-frames" role="group" aria-label="Messages" onScroll={onScroll}>
        {session.frames.map(frame => (
          <Row key={frame.number} frame={frame} isChosen={frame.number === chosen} onChoose={() => onChoose(frame.number)} />
        ))}
      </div>
    </Output>
  );
}

const WAYS = { out: { icon: 'up', word: 'sent' }, in: { icon: 'dl', word: 'received' }, said: { icon: 'info', word: 'told' } } as const;

function Row({ frame, isChosen, onChoose }: { frame: Frame; isChosen: boolean; onChoose: () => void }): JSX.Element {
  const way = WAYS[frame.way];
  return (
    <button type="button" class="fal-frame" aria-pressed={isChosen} onClick={onChoose}>
      <span class="t">{clockOf(frame.at)}</span>
      <span class={frame.way === 'in' ? 'fal-ok' : frame.way === 'out' ? 'fal-dim' : 'fal-warn'}>
        <Icon name={way.icon} small />
        <span class="fal-sr">{way.word}</span>
      </span>
      <span class="v fal-trunc">{summary(frame.value)}</span>
      <span class="n">{frame.after !== null ? duration(frame.after) : bytes(frame.size)}</span>
    </button>
  );
}

/** Seconds since the session was asked for. */
function clockOf(ms: number): string {
  return ms < 60_000 ? `${(ms / 1_000).toFixed(2)} s` : duration(ms);
}

function summary(value: unknown): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value, (_, member: unknown) => (isBytes(member) ? `<${member.content_type}, ${bytes(member.file_size)}>` : member));
  return (text ?? '').slice(0, 300);
}

function isBytes(value: unknown): value is { content_type: string; file_size: number } {
  const file = value as { url?: unknown; file_size?: unknown } | null;
  return typeof file === 'object' && file !== null && typeof file.url === 'string' && file.url.startsWith('blob:') && typeof file.file_size === 'number';
}

