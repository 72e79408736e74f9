// The card of `%fal deploy --check`: what would change, and the two buttons that say whether it does.
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { ApiError, type Transport } from '../../api/transport';
import type { Deployment, DeployPlan, PlannedCapture, PlannedSetting, Uploaded } from '../../api/wire.gen';
import { Banner, Button, Icon, Status, type StatusKind } from '../base/parts';
import type { Host } from '../host';
import { ago, bytes, count, seconds, shortId, uploadText } from '../words';
import { Card, useTransport } from './Card';
import { CellLink } from './Facts';
import type { SavedPlan } from './saved';

/** Where a plan stands. */
type State = 'asking' | 'waiting' | 'stale' | 'over' | 'dropped' | 'failed' | 'begun' | 'away';

const FACE: Record<State, { kind: StatusKind; word: string }> = {
  asking: { kind: 'busy', word: 'Checking' },
  waiting: { kind: 'wait', word: 'Waiting for you' },
  stale: { kind: 'warn', word: 'Plan is out of date' },
  over: { kind: 'off', word: 'No longer waiting' },
  dropped: { kind: 'off', word: 'Cancelled' },
  failed: { kind: 'err', word: 'Not deployed' },
  begun: { kind: 'ok', word: 'Confirmed' },
  away: { kind: 'offline', word: 'Not connected' }
};

export function PlanCard({ host, saved }: { host: Host; saved: SavedPlan }): JSX.Element {
  const link = useTransport(host, saved.instance, true);
  const [plan, setPlan] = useState(saved.plan);
  const [state, setState] = useState<State>('asking');
  const [said, say] = useState('');
  const [begun, setBegun] = useState<unknown>(null);
  const [busy, setBusy] = useState<'confirm' | 'drop' | 'again' | null>(null);
  const [checked_s, setChecked] = useState(saved.checked_s);
  const transport = link.transport;
  useEffect(() => {
    setPlan(saved.plan);
    if (!transport) {
      setState(link.known === false ? 'away' : 'asking');
      return;
    }
    let isCurrent = true;
    const tell = (next: State): void => void (isCurrent && setState(next));
    transport
      .json<DeployPlan>(`api/v1/plans/${saved.plan.plan_id}`)
      .then(() => tell('waiting'))
      .catch(error => tell(error instanceof ApiError ? 'over' : 'away'));
    return () => {
      isCurrent = false;
    };
  }, [transport, link.known, saved.plan.plan_id]);
  const act = async (kind: 'confirm' | 'drop' | 'again', run: (path: string, transport: Transport) => Promise<void>): Promise<void> => {
    if (!transport) {
      return;
    }
    setBusy(kind);
    try {
      await run(`api/v1/plans/${plan.plan_id}`, transport);
    } catch (error) {
      const code = error instanceof ApiError ? error.error.code : '';
      say(error instanceof Error ? error.message : String(error));
      setState(code === 'deploy.plan_stale' ? 'stale' : code === 'deploy.plan_not_found' ? 'over' : 'failed');
    } finally {
      setBusy(null);
    }
  };
  const confirm = (): void =>
    void act('confirm', async (path, to) => {
      setBegun(followed(saved, plan, await to.json<Deployment>(`${path}/confirm`, { method: 'POST' })));
      setState('begun');
    });
  const drop = (): void =>
    void act('drop', async (path, to) => {
      await to.json(path, { method: 'DELETE' });
      setState('dropped');
    });
  const again = (reset: boolean): void =>
    void act('again', async (path, to) => {
      const asked = performance.now();
      setPlan(await to.json<DeployPlan>(`${path}/again?reset_scale=${reset}`, { method: 'POST' }));
      setChecked((performance.now() - asked) / 1_000);
      say('');
      setState('waiting');
    });
  const face = state === 'waiting' && !plan.changed ? { kind: 'ok' as const, word: 'Already deployed' } : FACE[state];
  const isOpen = state === 'waiting' || state === 'asking';
  return (
    <>
      <section class="fal-ui fal-card" aria-label={`Deploy plan ${plan.app_name}`} data-state={state}>
        <div class="fal-card-head">
          <div class="fal-who">
            <span class="fal-card-title fal-trunc">Deploy {plan.app_name}</span>
            <span role="status">
              <Status kind={face.kind}>{face.word}</Status>
            </span>
            <span class="fal-dim fal-sm fal-trunc">{remark(state, plan, checked_s)}</span>
          </div>
          <div class="fal-card-actions">
            {(state === 'stale' || state === 'failed') && <Button icon="refresh" label="Check again" busy={busy === 'again' ? 'Checking' : null} onClick={() => again(plan.reset_scale)} />}
          </div>
        </div>
        <Said state={state} said={said} plan={plan} />
        {state !== 'begun' && (
          <>
            <div class="fal-sec">
              <Facts plan={plan} host={host} upload={saved.upload} />
            </div>
            <Settings plan={plan} canChoose={isOpen && plan.production !== null && transport !== null} isBusy={busy !== null} onReset={again} />
          </>
        )}
        {isOpen && plan.changed && (
          <div class="fal-foot">
            <Button kind="primary" icon="deploy" label="Confirm" busy={busy === 'confirm' ? 'Confirming' : null} disabled={state !== 'waiting' || busy !== null} onClick={confirm} />
            <Button label="Cancel" busy={busy === 'drop' ? 'Cancelling' : null} disabled={state !== 'waiting' || busy !== null} onClick={drop} />
            <span class="fal-dim fal-sm fal-end">
              In a script: <code>{saved.command || '--check --yes'}</code>
            </span>
          </div>
        )}
      </section>
      {begun && <Card host={host} data={begun} />}
    </>
  );
}

function remark(state: State, plan: DeployPlan, checked_s: number | null): string {
  if (state === 'waiting' && plan.changed) {
    const checked = checked_s === null ? '' : `checked in ${seconds(checked_s)}, `;
    return checked + (plan.production ? 'nothing changed yet' : 'first deployment');
  }
  return state === 'dropped' ? 'nothing was changed' : '';
}

function Said({ state, said, plan }: { state: State; said: string; plan: DeployPlan }): JSX.Element | null {
  if (state === 'waiting' && !plan.changed) {
    return <div class="fal-sec fal-sec-tight fal-sm">Code, captured values and requirements are the same. Nothing to do.</div>;
  }
  if (state === 'stale') {
    return (
      <Banner kind="warn" alert>
        <div>Something else was deployed, or its settings changed, since this plan was made. It will not run.</div>
      </Banner>
    );
  }
  if (state === 'over') {
    return (
      <Banner kind="idle">
        <div>This plan was confirmed or dropped, or an hour has passed. Run the cell again for a fresh one.</div>
      </Banner>
    );
  }
  if (state === 'away') {
    return (
      <Banner kind="warn">
        <div>No answer from the backend that made this plan. Nothing was changed.</div>
      </Banner>
    );
  }
  return state === 'failed' ? (
    <Banner kind="err" alert>
      <b class="fal-strong">{said}</b>
    </Banner>
  ) : null;
}

/** The data of the card that follows the deployment. */
function followed(saved: SavedPlan, plan: DeployPlan, deployment: Deployment): unknown {
  return { kind: 'deploy', instance: saved.instance, app: deployment.app_name, title: plan.app_name, stage: 'sent', rollout: deployment, upload: saved.upload, is_planned: true };
}

function Facts({ plan, host, upload }: { plan: DeployPlan; host: Host; upload: Uploaded | null }): JSX.Element {
  const { production, source, image } = plan;
  return (
    <div class="fal-plan">
      <dl class="fal-kv">
        <Row name="Target">
          <b class="fal-strong">{plan.endpoint_id}</b> in environment <b class="fal-strong">{plan.environment}</b>
        </Row>
        <Row name="Revision">
          {production ? (
            <>
              <code title={production.revision}>{shortId(production.revision)}</code>{' '}
              <span class="fal-dim">
                {production.author && `by ${production.author}, `}
                {ago(Date.parse(production.created_at), Date.now())}
              </span>{' '}
              → <b class="fal-strong">new</b>
            </>
          ) : (
            'first deployment'
          )}
        </Row>
        <Source plan={plan} host={host} key={source.diff} />
        <Row name="Auth">
          {production && production.auth !== plan.auth ? (
            <>
              {production.auth} → <b class="fal-warn">{plan.auth}</b>
            </>
          ) : (
            <>
              {plan.auth} {production && <span class="fal-dim">unchanged</span>}
            </>
          )}
        </Row>
        <Row name="Strategy">
          {plan.strategy} <span class="fal-dim">this deployment only{plan.detach && ', detached'}</span>
        </Row>
      </dl>
      <dl class="fal-kv">
        <Row name="Image">
          <span class="fal-row fal-row-6 fal-wrap">
            <span class={`fal-badge ${image.is_cached ? 'fal-badge-ok' : ''}`}>
              {image.is_cached && <Icon name="tick" small />}
              {image.is_cached ? 'cached' : 'to build'}
            </span>
            <code title={image.hash}>{image.hash.slice(0, 8)}</code>
            <span class="fal-dim">
              {image.size_bytes !== null && `${bytes(image.size_bytes)}, `}
              {image.is_cached ? 'nothing to build' : count(image.layers.length, 'layer')}
              {!image.uses_cache && ', --no-cache'}
            </span>
          </span>
        </Row>
        {upload && <Row name="Upload">{uploadText(upload.parts, upload.new_parts, upload.new_bytes)}</Row>}
        {plan.setup_s !== null && (
          <Row name="Setup">
            {seconds(plan.setup_s)} <span class="fal-dim">measured on {count(plan.setup_starts, 'start')}</span>
          </Row>
        )}
        {plan.captures.length > 0 && (
          <Row name="Captured">
            {plan.captures.slice(0, 6).map(capture => (
              <Captured key={capture.name} capture={capture} host={host} />
            ))}
            {plan.captures.length > 6 && <span class="fal-dim">and {plan.captures.length - 6} more</span>}
          </Row>
        )}
        <Row name="Idle cost">
          <Idle plan={plan} />
        </Row>
        {plan.lacking !== null && (
          <Row name="No room">
            <span class="fal-warn">
              {plan.lacking} {plan.strategy === 'recreate' ? 'Calls wait for it.' : 'A rolling deployment fails; with --strategy recreate calls wait for it.'}
            </span>
          </Row>
        )}
      </dl>
    </div>
  );
}

function Row(props: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <>
      <dt>{props.name}</dt>
      <dd>{props.children}</dd>
    </>
  );
}

function Source({ plan, host }: { plan: DeployPlan; host: Host }): JSX.Element {
  const [isOpen, open] = useState(false);
  const { source } = plan;
  const number = source.cell?.execution_count;
  return (
    <Row name="Source">
      <code>{source.class_name}</code>
      {source.notebook && ` in ${source.notebook.split('/').pop()}`}
      {number != null && ', '}
      {number != null && <CellLink label={`In [${number}]`} cellId={source.cell?.cell_id ?? null} line={null} host={host} />}{' '}
      {source.diff && (
        <>
          <span class="fal-ok">+{source.added}</span> <span class="fal-err">−{source.removed}</span>{' '}
          <button type="button" class="fal-link" aria-expanded={isOpen} onClick={() => open(!isOpen)}>
            {isOpen ? 'Hide code diff' : 'Show code diff'}
          </button>
        </>
      )}
      {isOpen && (
        <div class="fal-diff" tabIndex={0} role="region" aria-label="Code diff">
          {source.diff
            .split('\n')
            .slice(2)
            .map((line, index) => (
              <div key={index} class={line.startsWith('+') ? 'is-added' : line.startsWith('-') ? 'is-removed' : line.startsWith('@@') ? 'is-place' : ''}>
                {line || ' '}
              </div>
            ))}
        </div>
      )}
    </Row>
  );
}

function Captured({ capture, host }: { capture: PlannedCapture; host: Host }): JSX.Element {
  const number = capture.cell?.execution_count;
  const now = capture.size_bytes === null ? '' : bytes(capture.size_bytes);
  const isResized = capture.state === 'changed' && capture.size_before !== null && capture.size_before !== capture.size_bytes;
  return (
    <div>
      <code>{capture.name}</code> <span class={capture.state === 'same' ? 'fal-dim' : 'fal-warn'}>{capture.state}</span>{' '}
      <span class="fal-dim">{isResized && capture.size_before !== null ? `${bytes(capture.size_before)} → ${now}` : now}</span>
      {number != null && capture.state !== 'same' && (
        <>
          {', '}
          <CellLink label={`In [${number}]`} cellId={capture.cell?.cell_id ?? null} line={null} host={host} />
        </>
      )}
    </div>
  );
}

function Idle({ plan }: { plan: DeployPlan }): JSX.Element {
  if (!plan.idle_runners) {
    return (
      <>
        none <span class="fal-dim">min_concurrency 0; the last runner leaves after {plan.keep_alive_s} s</span>
      </>
    );
  }
  return (
    <span class="fal-warn">
      {count(plan.idle_runners, 'runner')} {plan.idle_machine}, always on
      {plan.idle_price_per_hour > 0 && `, ${plan.idle_price_per_hour.toFixed(2)} an hour`}
    </span>
  );
}

function Settings(props: { plan: DeployPlan; canChoose: boolean; isBusy: boolean; onReset: (reset: boolean) => void }): JSX.Element {
  const { plan } = props;
  const [isAll, showAll] = useState(false);
  const isFirst = plan.production === null;
  const telling = plan.settings.filter(row => (isFirst ? row.source === 'code' : row.now !== row.after || row.not_applied !== null));
  const rows = isAll ? plan.settings : telling;
  const rest = plan.settings.length - telling.length;
  const hides = plan.settings.some(row => row.not_applied !== null);
  return (
    <div class="fal-sec fal-sec-flush">
      {rows.length > 0 ? (
        <div class="fal-tablewrap" tabIndex={0} role="region" aria-label="Settings">
          <table class={`fal-table fal-table-note ${isFirst ? 'is-first' : ''}`}>
            <thead>
              <tr>
                <th>Setting</th>
                {!isFirst && <th>Production now</th>}
                <th>{isFirst ? 'Value' : 'After deploy'}</th>
                <th>{isFirst ? 'From' : 'Note'}</th>
              </tr>
            </thead>
            <tbody>
              {rows.map(row => (
                <Setting key={row.name} row={row} isFirst={isFirst} />
              ))}
            </tbody>
          </table>
        </div>
      ) : (
        <div class="fal-plan-more fal-sm fal-dim">No setting changes.</div>
      )}
      <div class="fal-row fal-wrap fal-plan-more">
        {props.canChoose && (hides || plan.reset_scale) && (
          <label class="fal-row fal-row-6">
            <input type="checkbox" class="fal-switch" checked={plan.reset_scale} disabled={props.isBusy} onChange={() => props.onReset(!plan.reset_scale)} />
            <span>
              Take scaling from code <code class="fal-dim">--reset-scale</code>
            </span>
          </label>
        )}
        {rest > 0 && (
          <span class="fal-dim fal-sm fal-end">
            {isFirst ? `${rest} more at their defaults` : `${rest} more settings, unchanged`}{' '}
            <button type="button" class="fal-link" aria-expanded={isAll} onClick={() => showAll(!isAll)}>
              {isAll ? 'Hide' : 'Show'}
            </button>
          </span>
        )}
      </div>
    </div>
  );
}

function Setting({ row, isFirst }: { row: PlannedSetting; isFirst: boolean }): JSX.Element {
  const isChanged = !isFirst && row.now !== row.after;
  return (
    <tr>
      <td>
        <code>{row.name}</code>
      </td>
      {!isFirst && <td class={`nowrap ${isChanged ? 'fal-dim' : ''}`}>{row.now}</td>}
      <td class={`nowrap ${isChanged ? 'fal-strong' : ''}`}>{row.after}</td>
      <td class="fal-dim">
        {row.not_applied !== null ? (
          <span class="fal-row fal-row-6 fal-wrap">
            <span class="fal-badge">inherited</span>
            <span class="fal-warn">
              {row.not_applied} in code will not apply without <code>--reset-scale</code>
            </span>
          </span>
        ) : isFirst || row.source !== 'code' ? (
          row.source
        ) : (
          'from code'
        )}
      </td>
    </tr>
  );
}
