// Parts of a plan's card: what would be deployed, and each setting as it is and as it would be.
import type { ComponentChildren, JSX } from 'preact';
import { useState } from 'preact/hooks';
import type { DeployPlan, PlannedCapture, PlannedSetting, Uploaded } from '../../api/wire.gen';
import { Icon } from '../base/parts';
import type { Host } from '../host';
import { ago, bytes, count, seconds, shortId, uploadText } from '../words';
import { CellLink } from './Facts';

/** What would be deployed, where, and how it differs from what serves. */
export function Facts({ plan, host, upload }: { plan: DeployPlan; host: Host; upload: Uploaded | null }): JSX.Element {
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
              {plan.lacking}{' '}
              {plan.strategy === 'recreate' ? (
                'Calls wait for it.'
              ) : (
                <>
                  A rolling deployment fails; with <code class="nowrap">--strategy recreate</code> calls wait for it.
                </>
              )}
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

/** The settings that change, or that would and do not. */
export function Settings(props: { plan: DeployPlan; canChoose: boolean; isBusy: boolean; onReset: (reset: boolean) => void }): JSX.Element {
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
