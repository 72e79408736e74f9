// The card of `%fal deploy --check`: what would change, the two buttons that say whether it does, and what became of it.
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiError, type Transport } from '../../api/transport';
import type { Deployment, DeployPlan, ErrorBody } from '../../api/wire.gen';
import { followPlan, type PlanNews } from '../../state/plan';
import { Banner, Button, Prose, Status, type StatusKind } from '../base/parts';
import type { Host } from '../host';
import { ago, seconds, shortId } from '../words';
import { Card, StartButton, useTransport } from './Card';
import { Facts, Settings } from './PlanParts';
import type { SavedPlan } from './saved';

/** Where a plan stands. */
type State = 'asking' | 'waiting' | 'stale' | 'over' | 'dropped' | 'failed' | 'begun' | 'away';

const FACE: Record<State | 'same' | 'saved', { kind: StatusKind; word: string }> = {
  asking: { kind: 'busy', word: 'Connecting' },
  waiting: { kind: 'wait', word: 'Waiting for you' },
  stale: { kind: 'warn', word: 'Plan is out of date' },
  over: { kind: 'off', word: 'No longer waiting' },
  dropped: { kind: 'off', word: 'Cancelled' },
  failed: { kind: 'err', word: 'Not deployed' },
  begun: { kind: 'ok', word: 'Confirmed' },
  away: { kind: 'offline', word: 'Not connected' },
  saved: { kind: 'idle', word: 'Saved view' },
  same: { kind: 'ok', word: 'Already deployed' }
};

type Act = 'confirm' | 'drop' | 'again';

/** What the card knows of its plan, and what it can do with it. */
interface View {
  plan: DeployPlan;
  state: State;
  /** What was refused last. */
  error: ErrorBody | null;
  begun: Deployment | null;
  busy: Act | null;
  checked_s: number | null;
  transport: Transport | null;
  /** False where this place knows no such backend. */
  known: boolean | null;
  look: () => void;
  confirm: () => void;
  drop: () => void;
  again: (reset: boolean) => void;
}

export function PlanCard({ host, saved }: { host: Host; saved: SavedPlan }): JSX.Element {
  const view = usePlan(host, saved);
  const { plan, state, busy } = view;
  const isSame = state === 'waiting' && !plan.changed;
  const face = isSame ? FACE.same : state === 'away' && view.known === false ? FACE.saved : FACE[state];
  const isOpen = state === 'waiting' || state === 'asking';
  const showsAll = saved.goesOn || !(isSame || state === 'stale' || state === 'begun');
  return (
    <>
      <section class="fal-ui fal-card" aria-label={`Deploy plan ${plan.app_name}`} data-state={state}>
        <div class="fal-card-head">
          <div class="fal-who">
            <span class="fal-card-title fal-trunc">Deploy {plan.app_name}</span>
            <span role="status">
              <Status kind={face.kind}>{face.word}</Status>
            </span>
            <span class="fal-dim fal-sm fal-trunc">{remark(view)}</span>
          </div>
          <div class="fal-card-actions">
            {(state === 'stale' || state === 'failed') && <Button icon="refresh" label="Check again" busy={busy === 'again' ? 'Checking' : null} onClick={() => view.again(plan.reset_scale)} />}
            {isSame && host.openPlayground && <Button kind="quiet" icon="open" label="Open" title="Open the playground in a tab" onClick={() => host.openPlayground?.(saved.instance, plan.app_name)} />}
          </div>
        </div>
        <Said {...view} />
        {showsAll && (
          <>
            <div class="fal-sec">
              <Facts plan={plan} host={host} upload={saved.upload} />
            </div>
            <Settings plan={plan} canChoose={isOpen && plan.production !== null && view.transport !== null} isBusy={busy !== null} onReset={view.again} />
          </>
        )}
        {isOpen && plan.changed && (
          <div class="fal-foot">
            <Button kind="primary" icon="deploy" label="Confirm" busy={busy === 'confirm' ? 'Confirming' : null} disabled={state !== 'waiting' || busy !== null} onClick={view.confirm} />
            <Button label="Cancel" busy={busy === 'drop' ? 'Cancelling' : null} disabled={state !== 'waiting' || busy !== null} onClick={view.drop} />
            <span class="fal-dim fal-sm fal-end">
              In a script: <code>{saved.command || '--check --yes'}</code>
            </span>
          </div>
        )}
      </section>
      {view.begun && <Card host={host} data={followed(saved, view.begun)} />}
    </>
  );
}

/** Follow the plan and act on it; its state is what the backend said last. */
function usePlan(host: Host, saved: SavedPlan): View {
  const link = useTransport(host, saved.instance, !saved.goesOn);
  const [plan, setPlan] = useState(saved.plan);
  const [state, setState] = useState<State>(saved.goesOn ? 'begun' : 'asking');
  const [error, say] = useState<ErrorBody | null>(null);
  const [begun, setBegun] = useState<Deployment | null>(null);
  const [busy, setBusy] = useState<Act | null>(null);
  const [checked_s, setChecked] = useState(saved.checked_s);
  const [round, setRound] = useState(0);
  const acting = useRef(false);
  const { transport, known } = link;
  const begin = (deployment: Deployment): void => {
    setBegun(deployment);
    setState('begun');
  };
  const hear = (news: PlanNews): void => {
    if (news.type === 'begun') {
      begin(news.deployment);
    } else if (!acting.current) {
      const shown = news.type === 'waiting' ? news.plan : null;
      // A refusal stays until something is done about it: the backend does not check by itself.
      setState(before => (shown && (before === 'stale' || before === 'failed') ? before : news.type));
      setPlan(before => shown ?? before);
    }
  };
  useEffect(() => {
    setPlan(saved.plan);
    setBegun(null);
    setState(saved.goesOn ? 'begun' : 'asking');
  }, [saved.plan.plan_id, saved.goesOn]);
  const isSettled = state === 'begun' || state === 'dropped';
  useEffect(() => {
    if (known === false && !isSettled) {
      setState('away');
    }
    return transport && !isSettled ? followPlan(transport, saved.plan.plan_id, saved.plan.app_name, hear) : undefined;
  }, [transport, known, saved.plan.plan_id, isSettled, round]);
  const act = async (kind: Act, run: (path: string, to: Transport) => Promise<void>): Promise<void> => {
    if (!transport) {
      return;
    }
    acting.current = true;
    setBusy(kind);
    try {
      await run(`api/v1/plans/${plan.plan_id}`, transport);
    } catch (problem) {
      const refusal = problem instanceof ApiError ? problem.error : null;
      say(refusal);
      setState(refusal === null || refusal.code === 'deploy.plan_not_found' ? 'asking' : refusal.code === 'deploy.plan_stale' ? 'stale' : 'failed');
      // Without an answer nobody knows whether it happened; the backend is asked.
      setRound(before => before + 1);
    } finally {
      acting.current = false;
      setBusy(null);
    }
  };
  return {
    ...{ plan, state, error, begun, busy, checked_s, transport, known, look: link.retry },
    confirm: () => void act('confirm', async (path, to) => begin(await to.json<Deployment>(`${path}/confirm`, { method: 'POST' }))),
    drop: () =>
      void act('drop', async (path, to) => {
        await to.json(path, { method: 'DELETE' });
        setState('dropped');
      }),
    again: reset =>
      void act('again', async (path, to) => {
        const asked = performance.now();
        setPlan(await to.json<DeployPlan>(`${path}/again?reset_scale=${reset}`, { method: 'POST' }));
        setChecked((performance.now() - asked) / 1_000);
        say(null);
        setState('waiting');
      })
  };
}

function remark({ state, plan, checked_s }: View): string {
  const { production } = plan;
  if (state === 'waiting' && plan.changed) {
    const checked = checked_s === null ? '' : `checked in ${seconds(checked_s)}, `;
    return checked + (production ? 'nothing changed yet' : 'first deployment');
  }
  if (state === 'waiting' && production) {
    return `revision ${shortId(production.revision)}, ${ago(Date.parse(production.created_at), Date.now())}`;
  }
  return state === 'dropped' ? 'nothing was changed' : '';
}

/** The sentence that a state calls for. */
function Said({ state, plan, error, transport, known, look }: View): JSX.Element | null {
  if (state === 'waiting' && !plan.changed) {
    return <div class="fal-sec fal-sec-tight fal-sm">Code, captured values and requirements are the same. Nothing to do.</div>;
  }
  if (state === 'stale') {
    return (
      <Banner kind="warn" alert>
        <div>
          <Overtaken plan={plan} now={error?.details ?? {}} />
        </div>
      </Banner>
    );
  }
  if (state === 'over') {
    return (
      <Banner kind="idle">
        <div>This plan was dropped, or an hour has passed. Nothing was deployed from it; run the cell again for a fresh one.</div>
      </Banner>
    );
  }
  if (state === 'away' && known === false) {
    return (
      <Banner kind="idle" action={<Button dense label="Look again" onClick={look} />}>
        <div>The backend that made this plan is not known to this Jupyter server. What became of it is not known here.</div>
      </Banner>
    );
  }
  if (state === 'away') {
    return (
      <Banner kind="warn" action={transport?.start && <StartButton transport={transport} />}>
        <div>No answer from the backend that made this plan. What became of it is shown here when it answers.</div>
      </Banner>
    );
  }
  return state === 'failed' ? (
    <Banner kind="err" alert>
      <b class="fal-strong">
        <Prose text={error?.message ?? ''} />
      </b>
      {error?.fix && (
        <div>
          <Prose text={error.fix} />
        </div>
      )}
    </Banner>
  ) : null;
}

/** What happened since a plan was made, as the refusal tells it. */
function Overtaken({ plan, now }: { plan: DeployPlan; now: Record<string, unknown> }): JSX.Element {
  const { revision, author, at } = now;
  const before = plan.production?.revision ?? null;
  if (typeof revision !== 'string' || revision === before) {
    return <>Settings of the app changed since this plan was made. It will not run.</>;
  }
  const when = typeof at === 'string' && Date.parse(at) ? `, made ${ago(Date.parse(at), Date.now())}` : '';
  return (
    <>
      Revision <code title={revision}>{shortId(revision)}</code>
      {typeof author === 'string' && ` by ${author}`}
      {when} serves now. This plan was made against {before ? <code title={before}>{shortId(before)}</code> : 'no deployment'} and will not run.
    </>
  );
}

/** The data of the card that follows the deployment. */
function followed(saved: SavedPlan, deployment: Deployment): unknown {
  return { kind: 'deploy', instance: saved.instance, app: deployment.app_name, title: saved.plan.app_name, stage: 'sent', rollout: deployment, upload: saved.upload, is_planned: true };
}
