// The card of a deployment: how it rolls out, who answers meanwhile, and what can be done about it.
import type { JSX } from 'preact';
import { useEffect, useReducer, useRef, useState } from 'preact/hooks';
import { ApiError, type Transport } from '../../api/transport';
import type { AppDetail, Deployment } from '../../api/wire.gen';
import { followApp, NO_APP, reduceApp, type AppView } from '../../state/app';
import { hubOf } from '../../state/hub';
import { useLoads } from '../../state/loads';
import { followRollout, isBeforeSwitch, isSuccess, NO_ROLLOUT, reduceRollout, type Course, type RolloutView } from '../../state/rollout';
import { Banner, Button, CopyButton, Status, useNow } from '../base/parts';
import { readEndpoints } from '../form/endpoints';
import type { Json } from '../form/normalise';
import { newForm } from '../../state/form';
import { curl } from '../playground/snippets';
import type { Host } from '../host';
import { LogFold } from '../logs/LogView';
import { LivePlayground } from '../playground/LivePlayground';
import { Address, StartButton, useTransport } from './Card';
import { shortRunner } from './face';
import { errorText } from './Problem';
import { isMoving, rolloutFace, type RolloutFace } from './rolloutFace';
import { AskBack, BriefProblem, Runners, runnersOf, targetOf } from './RolloutParts';
import type { Saved } from './saved';
import { TimelineView } from './Timeline';

export function RolloutCard({ host, saved }: { host: Host; saved: Saved & { course: Course } }): JSX.Element {
  const link = useTransport(host, saved.instance, true);
  const [app, tellApp] = useReducer(reduceApp, NO_APP);
  const [rollout, tell] = useReducer(reduceRollout, { ...NO_ROLLOUT, course: saved.course });
  const [id, follow] = useState(saved.course.deployment_id);
  const transport = link.transport;
  useEffect(() => (transport ? followApp(transport, saved.alias, tellApp) : undefined), [transport, saved.alias]);
  useEffect(() => (transport ? followRollout(transport, id, tell) : undefined), [transport, id]);
  // The output is written anew while its cell waits; a rollback from this card goes before.
  useEffect(() => {
    follow(saved.course.deployment_id);
    tell({ type: 'begin', course: saved.course });
  }, [saved.course.deployment_id]);
  const course = rollout.course ?? saved.course;
  const now = useNow(app.link === 'offline' ? 5_000 : isMoving(course) && link.known !== false ? 200 : null);
  const face = rolloutFace(saved, rollout, app, link.known, now);
  const begin = (next: Deployment): void => {
    tell({ type: 'begin', course: next });
    follow(next.deployment_id);
  };
  return (
    <section class="fal-ui fal-card" aria-label={`Rollout ${saved.title}`} data-state={face.mode}>
      <Body host={host} saved={saved} course={course} rollout={rollout} app={app} face={face} transport={transport} retry={link.retry} onBack={begin} />
    </section>
  );
}

interface BodyProps {
  host: Host;
  saved: Saved;
  course: Course;
  rollout: RolloutView;
  app: AppView;
  face: RolloutFace;
  transport: Transport | null;
  retry: () => void;
  onBack: (deployment: Deployment) => void;
}

/** Ways of this card to change something, and what became of the last try. */
interface Acts {
  busy: 'leave' | 'abort' | 'back' | null;
  failure: string | null;
  run: (kind: Acts['busy'], path: string, body?: unknown) => Promise<Deployment | null>;
}

function useActs(transport: Transport | null): Acts {
  const [busy, setBusy] = useState<Acts['busy']>(null);
  const [failure, fail] = useState<string | null>(null);
  const run: Acts['run'] = async (kind, path, body) => {
    if (!transport) {
      return null;
    }
    setBusy(kind);
    fail(null);
    try {
      return await transport.json<Deployment>(path, { method: 'POST', body });
    } catch (error) {
      fail(error instanceof ApiError || error instanceof Error ? error.message : String(error));
      return null;
    } finally {
      setBusy(null);
    }
  };
  return { busy, failure, run };
}

function Body(props: BodyProps): JSX.Element {
  const { face, saved, course, app, rollout, transport } = props;
  const acts = useActs(transport);
  const [isAsked, ask] = useState(false);
  const [isTried, tryIt] = useState(false);
  const detail = app.detail && !app.isGone ? app.detail : null;
  const isLive = face.mode === 'rolling' || course.state === 'draining';
  const loads = useLoads(transport, saved.alias, isLive && detail !== null);
  const way = wayBack(props);
  return (
    <>
      <div class="fal-card-head">
        <div class="fal-who">
          <span class="fal-card-title fal-trunc" title={saved.alias}>
            {face.title}
          </span>
          <span role="status">
            <Status kind={face.kind}>{face.word}</Status>
          </span>
          <span class="fal-dim fal-sm" title={course.revision ? `revision ${course.revision}` : undefined}>
            {face.meta}
          </span>
        </div>
        <Actions {...props} acts={acts} way={way} isAsked={isAsked} onAsk={() => ask(!isAsked)} isTried={isTried} onTry={() => tryIt(!isTried)} />
      </div>
      {isAsked && way && <WayBack {...props} acts={acts} revision={way} onEnd={() => ask(false)} />}
      {acts.failure !== null && (
        <Banner kind="err" alert>
          <b class="fal-strong">{acts.failure}</b>
        </Banner>
      )}
      <Notices {...props} />
      {face.mode === 'rolling' && (rollout.isLeft || saved.isLeft) && (
        <Banner kind="idle">
          <div>Detached: the rollout goes on without the cell, and this card follows it.</div>
        </Banner>
      )}
      {face.mode === 'deployed' && detail && (
        <div class="fal-sec fal-sec-tight">
          <Address detail={detail} curl={firstCall(detail)} />
        </div>
      )}
      {face.timeline ? (
        <div class="fal-sec">
          <TimelineView timeline={face.timeline} course={course} />
        </div>
      ) : (
        face.mode === 'deployed' && <div class="fal-sec fal-sec-tight fal-sm">Code, captured values and requirements are the same. Nothing was to do.</div>
      )}
      {face.problem && <BriefProblem error={face.problem} host={props.host} />}
      {transport && face.mode !== 'offline' && <RolloutLog {...props} transport={transport} detail={detail} isLive={isLive} />}
      {isLive && detail && <Runners course={course} detail={detail} loads={loads} />}
      {isTried && transport && detail?.revision && (
        <div class="fal-sec fal-sec-flush">
          <LivePlayground transport={transport} detail={detail} />
        </div>
      )}
    </>
  );
}

/** A call of the first endpoint with its defaults; null for one that is no plain call. */
function firstCall(detail: AppDetail): string | null {
  const endpoint = readEndpoints(detail.openapi)[0];
  if (!endpoint || endpoint.socket) {
    return null;
  }
  const { body } = newForm(endpoint.parts).value as Record<string, Json>;
  const path = endpoint.path === '/' ? '' : endpoint.path;
  return curl({ url: detail.urls.run + path, method: endpoint.method, body, needsKey: detail.auth_mode !== 'public' });
}

/** The revision that a rollback would go to; null where there is no way back from here. */
function wayBack({ course, app, face, transport }: BodyProps): string | null {
  const isCurrent = app.detail?.revision === course.revision && face.mode === 'deployed';
  const canGo = transport !== null && isCurrent && isSuccess(course) && course.changed;
  return canGo && course.previous !== course.revision ? course.previous : null;
}

function WayBack(props: BodyProps & { acts: Acts; revision: string; onEnd: () => void }): JSX.Element {
  const { acts, saved, revision, onBack, onEnd } = props;
  const go = (): void =>
    void acts.run('back', `api/v1/apps/${encodeURIComponent(saved.alias)}/revision`, { revision }).then(next => {
      if (next) {
        onBack(next);
      }
      onEnd();
    });
  return <AskBack revision={revision} busy={acts.busy === 'back'} onYes={go} onNo={onEnd} />;
}

interface ActionProps extends BodyProps {
  acts: Acts;
  way: string | null;
  isAsked: boolean;
  onAsk: () => void;
  isTried: boolean;
  onTry: () => void;
}

function Actions(props: ActionProps): JSX.Element {
  const { acts, app, course, face, host, rollout, saved, transport } = props;
  const path = `api/v1/deployments/${course.deployment_id}`;
  const asker = useRef<HTMLSpanElement>(null);
  const wasAsked = useRef(false);
  useEffect(() => {
    if (wasAsked.current && !props.isAsked) {
      asker.current?.querySelector('button')?.focus();
    }
    wasAsked.current = props.isAsked;
  }, [props.isAsked]);
  const isThere = transport !== null && face.mode !== 'offline';
  const canLeave = isThere && face.mode === 'rolling' && saved.isWaiting && !rollout.isLeft && course.kind === 'deploy';
  const canCall = isThere && !app.isGone && app.detail?.revision != null && (face.mode === 'deployed' || face.mode === 'replaced');
  const target = targetOf(face.problem, host);
  return (
    <div class="fal-card-actions">
      {canLeave && <Button kind="quiet" icon="open" label="Detach" title="The rollout goes on, the cell is free" busy={acts.busy === 'leave' ? 'Detaching' : null} onClick={() => void acts.run('leave', `${path}/leave`)} />}
      {isThere && face.mode === 'rolling' && isBeforeSwitch(course) && (
        <Button icon="stop" label="Abort" title="Keep what serves now" busy={acts.busy === 'abort' ? 'Aborting' : null} onClick={() => void acts.run('abort', `${path}/cancel`)} />
      )}
      {props.way && (
        <span ref={asker}>
          <Button kind="quiet" icon="undo" label="Roll back" disabled={props.isAsked} onClick={props.onAsk} />
        </span>
      )}
      {canCall && <Button kind="quiet" icon="play" label="Playground" title={props.isTried ? 'Hide the playground' : 'Call it from here'} expanded={props.isTried} onClick={props.onTry} />}
      {canCall && host.openPlayground && <Button icon="open" label="Open" title="Open the playground in a tab" onClick={() => host.openPlayground?.(saved.instance, saved.alias)} />}
      {face.problem && <CopyButton text={errorText(face.problem)} label="Copy error" word="Copy error" quiet />}
      {target && <Button kind="primary" label={`Go to line ${target.line}`} onClick={() => host.goTo?.(target)} />}
      {face.mode === 'offline' && transport && <Button icon="refresh" label="Reconnect" onClick={() => hubOf(transport).retry()} />}
    </div>
  );
}

/** Sentences that a state calls for, above the timeline. */
function Notices({ face, app, saved, transport, retry }: BodyProps): JSX.Element | null {
  if (face.mode === 'saved' && saved.alias) {
    return (
      <Banner kind="idle" action={<Button dense label="Look again" onClick={retry} />}>
        <div>The backend that ran this is not known to this Jupyter server. What became of it since is not known here.</div>
      </Banner>
    );
  }
  if (face.mode === 'offline') {
    const address = app.offline?.address;
    return (
      <Banner kind="warn" action={transport?.start && <StartButton transport={transport} />}>
        <div>
          No answer from the backend{address && ' at '}
          {address && <code>{address}</code>}. Deployed apps may still be serving.
        </div>
      </Banner>
    );
  }
  return face.notice ? (
    <Banner kind="idle">
      <div>
        <b class="fal-strong">{face.notice.strong}</b> {face.notice.rest}
      </div>
    </Banner>
  ) : null;
}

function RolloutLog(props: BodyProps & { transport: Transport; detail: AppDetail | null; isLive: boolean }): JSX.Element | null {
  const { course, app, detail, face, isLive } = props;
  const [isOpen, open] = useState(false);
  const failed = course.phases.find(one => one.state === 'failed');
  const isBuild = (course.state === 'building' || failed?.name === 'build') && !!course.image && !course.image.cached;
  const told = course.error?.details['runner_id'];
  const runner = typeof told === 'string' ? told : (course.runner_id ?? (detail && runnersOf(course, detail).find(one => one.revision === course.revision)?.runner_id));
  if (!course.changed || (!isBuild && !runner) || !['rolling', 'deployed', 'aborted'].includes(face.mode)) {
    return null;
  }
  const source = isBuild && course.image ? { image: course.image.hash } : { runner: String(runner) };
  return (
    <LogFold
      key={JSON.stringify(source)}
      transport={props.transport}
      source={source}
      label={isBuild ? 'Build log' : 'Runner log'}
      whose={isBuild ? undefined : shortRunner(String(runner))}
      counts={face.mode === 'aborted'}
      isLive={isLive}
      round={app.event}
      isOpen={isOpen}
      onToggle={() => open(!isOpen)}
    />
  );
}
