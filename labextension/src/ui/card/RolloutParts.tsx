// Parts of a deployment's card: the runners while it rolls out, its error in brief, and the way back.
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import type { AppDetail, ErrorBody, RunnerInfo } from '../../api/wire.gen';
import type { Course } from '../../state/rollout';
import { Banner, Button, Icon, Prose, Status, type StatusKind } from '../base/parts';
import type { Host } from '../host';
import { shortId } from '../words';
import { shortRunner } from './face';
import { Place, Traceback } from './Problem';
import { readTraceback } from './traceback';

const STATES: Record<RunnerInfo['state'], { kind: StatusKind; word: string }> = {
  PENDING: { kind: 'busy', word: 'Starting' },
  DOCKER_PULL: { kind: 'busy', word: 'Pulling' },
  SETUP: { kind: 'busy', word: 'Setup' },
  IDLE: { kind: 'ok', word: 'Ready' },
  RUNNING: { kind: 'ok', word: 'Running' },
  DRAINING: { kind: 'wait', word: 'Draining' },
  TERMINATING: { kind: 'idle', word: 'Stopping' },
  TERMINATED: { kind: 'off', word: 'Stopped' },
  CRASH_BACKOFF: { kind: 'err', word: 'Waits after a crash' }
};

/** The runners that this rollout is about: those of the new revision, then those of the old one that live. */
export function runnersOf(course: Course, detail: AppDetail): RunnerInfo[] {
  const isOurs = (runner: RunnerInfo): boolean => runner.revision === course.revision && (!runner.ended_at || Date.parse(runner.started_at ?? '') >= Date.parse(course.created_at));
  const old = detail.runners.filter(runner => runner.revision !== course.revision && !runner.ended_at);
  return [...detail.runners.filter(isOurs), ...old];
}

export function Runners({ course, detail, loads }: { course: Course; detail: AppDetail; loads: Record<string, number> }): JSX.Element | null {
  const runners = runnersOf(course, detail);
  if (!runners.length) {
    return null;
  }
  return (
    <div class="fal-sec fal-sec-flush">
      <div class="fal-tablewrap" tabIndex={0} role="region" aria-label="Runners">
        <table class="fal-table fal-runners">
          <thead>
            <tr>
              <th>Runner</th>
              <th>Revision</th>
              <th>State</th>
              <th>Machine</th>
              <th class="r">In flight</th>
            </tr>
          </thead>
          <tbody>
            {runners.map(runner => (
              <tr key={runner.runner_id} data-runner={runner.runner_id}>
                <td class="fal-mono" title={runner.runner_id}>
                  {shortRunner(runner.runner_id)}
                </td>
                <td title={runner.revision}>
                  <code>{shortId(runner.revision)}</code>
                </td>
                <td title={runner.reason ?? undefined}>
                  <Status kind={stateOf(runner, loads).kind}>{stateOf(runner, loads).word}</Status>
                </td>
                <td class="nowrap">
                  {runner.machine_type} <span class="fal-dim fal-node">{runner.node === 'local' ? 'this machine' : runner.node}</span>
                </td>
                <td class="r">{loads[runner.runner_id] ?? runner.in_flight_requests}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </div>
  );
}

/** Ready or running is told by the load, which is newer than the last event. */
function stateOf(runner: RunnerInfo, loads: Record<string, number>): { kind: StatusKind; word: string } {
  const load = loads[runner.runner_id];
  const isUp = runner.state === 'IDLE' || runner.state === 'RUNNING';
  return STATES[isUp && load !== undefined ? (load ? 'RUNNING' : 'IDLE') : runner.state];
}

/** What went wrong, where, and the line; the traceback is folded. */
export function BriefProblem({ error, host }: { error: ErrorBody; host: Host }): JSX.Element {
  const [isOpen, open] = useState(false);
  const frame = readTraceback(error.traceback ?? '').filter(one => one.isOwn).at(-1);
  const line = error.where?.['line'];
  const isThere = frame !== undefined && (typeof line !== 'number' || frame.line === line);
  return (
    <div class="fal-sec fal-stack">
      <div class="fal-stack-4">
        <div class="fal-strong fal-pre">
          <Prose text={error.message} />
        </div>
        <div class="fal-sm">
          <Place error={error} host={host} />
          {isThere && frame.name !== '<module>' && ` in ${frame.name}`}
          {isThere && frame.code && (
            <>
              : <code>{frame.code.trim()}</code>
            </>
          )}
        </div>
        {error.fix && (
          <div class="fal-sm">
            <Prose text={error.fix} />
          </div>
        )}
      </div>
      {error.traceback && (
        <div>
          <button type="button" class="fal-link fal-sm fal-foldlink" aria-expanded={isOpen} onClick={() => open(!isOpen)}>
            <Icon name={isOpen ? 'down' : 'right'} small />
            Traceback
          </button>
          {isOpen && <Traceback text={error.traceback} />}
        </div>
      )}
    </div>
  );
}

/** Where an error can be gone to from here: the cell's id and the line. */
export function targetOf(error: ErrorBody | null, host: Host): { cell_id: string; line: number } | null {
  const where = error?.where ?? {};
  const [cell, line] = [where['cell_id'], where['line']];
  return host.goTo && typeof cell === 'string' && typeof line === 'number' ? { cell_id: cell, line } : null;
}

interface BackProps {
  revision: string;
  busy: boolean;
  onYes: () => void;
  onNo: () => void;
}

/** Asks in its place; Escape is no. */
export function AskBack({ revision, busy, onYes, onNo }: BackProps): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => box.current?.querySelector('button')?.focus(), []);
  return (
    <div ref={box} role="group" aria-label="Roll back?" onKeyDown={event => event.key === 'Escape' && onNo()}>
      <Banner
        kind="warn"
        action={
          <span class="fal-row">
            <Button kind="primary" dense icon="undo" label={`Roll back to ${shortId(revision)}`} busy={busy ? 'Rolling back' : null} onClick={onYes} />
            <Button dense label="Keep" disabled={busy} onClick={onNo} />
          </span>
        }
      >
        <div>
          <b class="fal-strong">Roll back to revision {shortId(revision)}?</b> Nothing is built; it answers as soon as one of its runners is ready.
        </div>
      </Banner>
    </div>
  );
}
