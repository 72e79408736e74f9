// The card under a cell: one skeleton in every state. Head, phases, body, playground, log fold.
import type { JSX } from 'preact';
import { useEffect, useReducer, useState } from 'preact/hooks';
import { followApp, NO_APP, reduceApp, type AppView } from '../../state/app';
import { hubOf } from '../../state/hub';
import { ApiError, type Transport } from '../../api/transport';
import type { AppDetail } from '../../api/wire.gen';
import { Banner, Button, CopyButton, Icon, PhaseTrack, Status, useNow } from '../base/parts';
import type { Host } from '../host';
import { LogFold } from '../logs/LogView';
import { LivePlayground } from '../playground/LivePlayground';
import { faceOf, type Face } from './face';
import { factsOf, FactsLine } from './Facts';
import { PlanCard } from './Plan';
import { errorText, Place, Problem } from './Problem';
import { RolloutCard } from './Rollout';
import { readPlan, readSaved, type Saved } from './saved';
import { Prose } from '../base/parts';

export interface CardProps {
  host: Host;
  /** The data of the output, as found. */
  data: unknown;
}

/** What an output is: a plan that waits for a word, a deployment, or an app. */
export function Card({ host, data }: CardProps): JSX.Element {
  const plan = readPlan(data);
  if (plan) {
    return <PlanCard host={host} saved={plan} />;
  }
  const saved = readSaved(data);
  return saved.course && saved.stage === 'sent' ? <RolloutCard host={host} saved={{ ...saved, course: saved.course }} /> : <AppCard host={host} data={data} />;
}

export function AppCard({ host, data }: CardProps): JSX.Element {
  const saved = readSaved(data);
  const link = useTransport(host, saved.instance, saved.stage === 'sent');
  const [view, dispatch] = useReducer(reduceApp, NO_APP);
  useEffect(() => (link.transport && saved.alias ? followApp(link.transport, saved.alias, dispatch) : undefined), [link.transport, saved.alias]);
  const isTicking = view.detail?.deployment?.phases.some(phase => phase.state === 'now') ?? false;
  const now = useNow(isTicking ? 250 : view.link === 'offline' ? 5_000 : null);
  const face = faceOf(saved, view, link.known, now);
  return (
    <section class="fal-ui fal-card" aria-label={`App ${saved.title}`} data-state={face.mode}>
      <CardBody host={host} saved={saved} view={view} face={face} transport={link.transport} retry={link.retry} />
    </section>
  );
}

/** Find the backend that an output names; again on demand. */
export function useTransport(host: Host, instance: string, isWanted: boolean) {
  const [round, setRound] = useState(0);
  const [found, setFound] = useState<{ transport: Transport | null; known: boolean | null }>({ transport: null, known: null });
  useEffect(() => {
    let isCurrent = true;
    if (isWanted) {
      void host.transport(instance).then(transport => isCurrent && setFound({ transport, known: transport !== null }));
    }
    return () => {
      isCurrent = false;
    };
  }, [instance, isWanted, round]);
  return { ...found, retry: () => setRound(round + 1) };
}

interface BodyProps {
  host: Host;
  saved: Saved;
  view: AppView;
  face: Face;
  transport: Transport | null;
  retry: () => void;
}

function CardBody(props: BodyProps): JSX.Element {
  const { face, saved, view, host, transport } = props;
  const [isLogOpen, openLog] = useState(false);
  const [round, setRound] = useState(0);
  const [stopFailure, sayStopFailure] = useState<string | null>(null);
  const detail = view.detail;
  const facts = detail && !view.isGone ? factsOf(detail) : saved.facts;
  const isCallable = detail !== null && detail.revision !== null && !view.isGone;
  // A failed card says what failed; what still serves has its own playground tab.
  const showsForm = isCallable && transport && (face.mode === 'ready' || face.mode === 'progress' || face.mode === 'offline');
  return (
    <>
      <div class="fal-card-head">
        <div class="fal-who">
          <span class="fal-card-title fal-trunc" title={saved.alias}>
            {saved.title}
          </span>
          <span role="status">
            <Status kind={face.kind}>{face.word}</Status>
          </span>
          <span class="fal-dim fal-sm" title={face.hint ?? undefined}>
            {face.meta}
          </span>
        </div>
        <Actions {...props} isLogOpen={isLogOpen} onLog={() => openLog(!isLogOpen)} onStopFailure={sayStopFailure} />
      </div>
      {stopFailure !== null && !view.isGone && (
        <Banner kind="err" alert>
          <b class="fal-strong">The app was not stopped.</b>
          <div>{stopFailure}</div>
        </Banner>
      )}
      <Notices {...props} />
      <div class="fal-sec fal-sec-tight fal-stack">
        {isCallable && detail && face.mode !== 'failed' && <Address detail={detail} />}
        {face.phases && <PhaseTrack phases={face.phases} />}
        <Note {...props} />
        <FactsLine facts={facts} host={host} />
      </div>
      {face.problem && face.mode !== 'needs_fix' && (
        <div class="fal-sec">
          <Problem error={face.problem} host={host} />
        </div>
      )}
      {showsForm && detail && (
        <div class="fal-sec fal-sec-flush">
          <LivePlayground
            transport={transport}
            detail={detail}
            note={face.mode === 'progress' ? 'from the previous version' : null}
            onAnswer={() => setRound(round + 1)}
            onLogs={() => openLog(true)}
          />
        </div>
      )}
      {transport && detail && !view.isGone && face.mode !== 'offline' && (
        <CardLog {...props} transport={transport} detail={detail} isOpen={isLogOpen} onToggle={() => openLog(!isLogOpen)} round={round} />
      )}
      {face.remark && (
        <Banner kind="idle" action={canOpen(props) && <Button dense icon="open" label="Open playground tab" onClick={() => host.openPlayground?.(saved.instance, saved.alias)} />}>
          <div title={face.hint ?? undefined}>{face.remark}</div>
        </Banner>
      )}
    </>
  );
}

export function Address({ detail, curl }: { detail: AppDetail; curl?: string | null }): JSX.Element {
  return (
    <div class="fal-row fal-row-4">
      <span class="fal-dim">
        <Icon name={detail.auth_mode === 'public' ? 'globe' : 'lock'} />
      </span>
      <code class="fal-trunc">{detail.urls.run}</code>
      <CopyButton text={detail.urls.run} label="Copy URL" />
      <span class="fal-dim fal-sm fal-audience">{audience(detail)}</span>
      {curl && (
        <span class="fal-end">
          <CopyButton text={curl} label="Copy curl" word="Copy curl" quiet dense />
        </span>
      )}
    </div>
  );
}

function audience(detail: AppDetail): string {
  if (detail.auth_mode === 'public') {
    return detail.ephemeral ? 'public while it runs' : 'public';
  }
  return `${detail.auth_mode}, needs a key`;
}

/** Sentences that a state calls for, above the facts. */
function Notices({ face, saved, view, host, transport, retry }: BodyProps): JSX.Element | null {
  if (face.mode === 'needs_fix' && face.problem) {
    const error = face.problem;
    return (
      <Banner kind="warn" alert>
        <b class="fal-strong">
          <Prose text={error.message} />
        </b>
        <div>
          <Place error={error} host={host} /> {error.fix && <Prose text={error.fix} />}
        </div>
      </Banner>
    );
  }
  if (face.mode === 'offline') {
    const address = view.offline?.address;
    return (
      <Banner kind="warn" action={transport?.start && <StartButton transport={transport} />}>
        <div>
          No answer from the backend{address && ' at '}
          {address && <code>{address}</code>}. Deployed apps may still be serving.
          {view.offline?.command && !transport?.start && (
            <>
              {' '}
              Start it with <code>{view.offline.command}</code>.
            </>
          )}
        </div>
      </Banner>
    );
  }
  if (face.mode === 'saved' && saved.stage === 'sent') {
    return (
      <Banner kind="idle" action={<Button dense label="Look again" onClick={retry} />}>
        <div>The backend that ran this is not known to this Jupyter server. Run the cell again to have it here.</div>
      </Banner>
    );
  }
  return null;
}

/** Asks the server to start the backend, and says what came of it. */
export function StartButton({ transport }: { transport: Transport }): JSX.Element {
  const [busy, setBusy] = useState<string | null>(null);
  const [failure, setFailure] = useState<string | null>(null);
  const start = (): void => {
    setBusy('Starting');
    setFailure(null);
    void transport
      .start?.()
      .then(() => hubOf(transport).retry())
      .catch(error => setFailure(error instanceof Error ? error.message : String(error)))
      .finally(() => setBusy(null));
  };
  return (
    <span class="fal-stack-4">
      <Button dense icon="play" label="Start backend" busy={busy} onClick={start} />
      {failure && <span class="fal-sm fal-err">{failure}</span>}
    </span>
  );
}

function Note({ face, saved }: BodyProps): JSX.Element | null {
  if (face.mode !== 'ended') {
    return null;
  }
  const text = saved.kind === 'deploy' ? 'This app was deleted. Deploy it again to have it back.' : 'The temporary URL is gone. Run the cell again to start it at the same address.';
  return <div class="fal-sm fal-dim">{text}</div>;
}

function CardLog(props: BodyProps & { transport: Transport; detail: AppDetail; isOpen: boolean; onToggle: () => void; round: number }): JSX.Element | null {
  const { detail, face } = props;
  const image = detail.deployment?.image;
  const failed = detail.deployment?.phases.find(phase => phase.state === 'failed');
  const isBuild = (detail.deployment?.state === 'building' || failed?.name === 'build') && !image?.cached;
  if (isBuild && !image) {
    return null;
  }
  const source = isBuild && image ? { image: image.hash } : { app: detail.alias };
  const label = isBuild ? 'Build log' : face.mode === 'ready' ? 'Logs' : 'Runner log';
  return (
    <LogFold
      transport={props.transport}
      source={source}
      label={label}
      isLive={face.mode === 'progress'}
      round={props.round + detail.event}
      isOpen={props.isOpen}
      onToggle={props.onToggle}
    />
  );
}

/** Whether this place can show the app that answers now in a tab of its own. */
function canOpen({ host, view }: BodyProps): boolean {
  return host.openPlayground !== undefined && view.detail?.revision != null && !view.isGone;
}

function Actions(props: BodyProps & { isLogOpen: boolean; onLog: () => void; onStopFailure: (message: string | null) => void }): JSX.Element {
  const { face, saved, view, host, transport } = props;
  const canStop = transport && saved.kind === 'run' && view.detail && !view.isGone && ['progress', 'ready', 'failed'].includes(face.mode);
  return (
    <div class="fal-card-actions">
      {face.mode === 'ready' && <Button kind="quiet" icon="logs" label="Logs" title={props.isLogOpen ? 'Hide logs' : 'Show logs'} onClick={props.onLog} />}
      {face.mode === 'ready' && canOpen(props) && <Button kind="quiet" icon="open" label="Open playground tab" onClick={() => host.openPlayground?.(saved.instance, saved.alias)} />}
      {face.problem && <CopyError text={errorText(face.problem)} />}
      {face.mode === 'offline' && transport && <Button kind="plain" icon="refresh" label="Reconnect" onClick={() => hubOf(transport).retry()} />}
      {canStop && view.detail && <StopButton transport={transport} detail={view.detail} isReady={face.mode !== 'progress'} onFailure={props.onStopFailure} />}
    </div>
  );
}

function CopyError({ text }: { text: string }): JSX.Element {
  return <CopyButton text={text} label="Copy error" word="Copy error" quiet />;
}

interface StopProps {
  transport: Transport;
  detail: AppDetail;
  isReady: boolean;
  onFailure: (message: string | null) => void;
}

function StopButton({ transport, detail, isReady, onFailure }: StopProps): JSX.Element {
  const [busy, setBusy] = useState<string | null>(null);
  const deployment = detail.deployment;
  const stop = (): void => {
    setBusy('Stopping');
    onFailure(null);
    const path = isReady || !deployment ? `api/v1/apps/${detail.alias}` : `api/v1/deployments/${deployment.deployment_id}/cancel`;
    void transport
      .json(path, { method: isReady || !deployment ? 'DELETE' : 'POST' })
      // What became of it comes as an event; an app that is gone already is what was wanted.
      .catch(error => (error instanceof ApiError && error.status === 404 ? undefined : onFailure(error instanceof Error ? error.message : String(error))))
      .finally(() => setBusy(null));
  };
  return <Button kind="quiet" icon="stop" label="Stop" busy={busy} onClick={stop} />;
}
