// The side panel: apps and temporary apps, their state, address and playground; live by events.
import type { JSX } from 'preact';
import { useEffect, useMemo, useReducer, useState } from 'preact/hooks';
import { hubOf } from '../../state/hub';
import { followApps, NO_APPS, reduceApps, type AppsView } from '../../state/apps';
import type { Transport } from '../../api/transport';
import type { AppSummary } from '../../api/wire.gen';
import { Banner, Button, CopyButton, Icon, IconButton, Status, StatusIcon, toneOf, useNow, type StatusKind } from '../base/parts';
import { StartButton } from '../card/Card';
import type { Host } from '../host';
import { ago, clock, count, shortId } from '../words';

export interface PanelProps {
  host: Host;
  /** The backend whose apps are listed; "local" is the one of this machine. */
  instance: string;
}

export const STARTER = '%load_ext fal_notebook\n%%fal_app';

export function Panel({ host, instance }: PanelProps): JSX.Element {
  const [transport, setTransport] = useState<Transport | null>(null);
  const [view, dispatch] = useReducer(reduceApps, NO_APPS);
  const [filter, setFilter] = useState('');
  useEffect(() => void host.transport(instance).then(setTransport), [instance]);
  useEffect(() => (transport ? followApps(transport, dispatch) : undefined), [transport]);
  const shown = useMemo(() => (view.apps ?? []).filter(app => app.alias.includes(filter.trim().toLowerCase())), [view.apps, filter]);
  return (
    <section class="fal-ui fal-panel" aria-label="fal">
      <div class="fal-panel-bar">
        <span class="fal-search">
          <Icon name="search" />
          <input class="fal-input" placeholder="Filter apps" aria-label="Filter apps" value={filter} onInput={event => setFilter(event.currentTarget.value)} />
        </span>
      </div>
      {view.link === 'offline' && transport && <Offline view={view} transport={transport} />}
      {view.refusal && <Banner kind="err">{view.refusal.message}</Banner>}
      <div class="fal-panel-scroll">
        <Sections view={view} apps={shown} host={host} instance={instance} isFiltered={filter.trim() !== ''} />
      </div>
      <Foot view={view} />
    </section>
  );
}

function Offline({ view, transport }: { view: AppsView; transport: Transport }): JSX.Element {
  const address = view.offline?.address;
  return (
    <Banner kind="err">
      <b class="fal-strong">No answer from the backend</b>
      <div>
        {address ? (
          <>
            Tried <code>{address}</code>.
          </>
        ) : (
          'It is not running on this machine.'
        )}{' '}
        Deployed apps may still be serving.
      </div>
      <div class="fal-row fal-wrap">
        <StartButton transport={transport} />
        <Button dense kind="quiet" icon="refresh" label="Try now" onClick={() => hubOf(transport).retry()} />
      </div>
    </Banner>
  );
}

interface SectionsProps {
  view: AppsView;
  apps: AppSummary[];
  host: Host;
  instance: string;
  isFiltered: boolean;
}

function Sections(props: SectionsProps): JSX.Element | null {
  const { view, apps } = props;
  if (view.apps === null) {
    return view.link === 'connecting' ? <Loading /> : null;
  }
  if (!view.apps.length) {
    return <Empty host={props.host} />;
  }
  const deployed = apps.filter(app => !app.ephemeral);
  const temporary = apps.filter(app => app.ephemeral);
  return (
    <>
      <Section {...props} title="Apps" apps={deployed} empty={props.isFiltered ? 'None with this name.' : 'None deployed yet: %fal deploy'} />
      {(temporary.length > 0 || !props.isFiltered) && <Section {...props} title="Temporary apps" apps={temporary} empty="None. They live while their kernel does." />}
    </>
  );
}

function Section(props: SectionsProps & { title: string; apps: AppSummary[]; empty: string }): JSX.Element {
  const [isOpen, open] = useState(true);
  const asOf = props.view.link === 'offline' && props.view.readAt ? `as of ${clock(props.view.readAt)}` : String(props.apps.length);
  return (
    <>
      <button type="button" class="fal-sechead" aria-expanded={isOpen} onClick={() => open(!isOpen)}>
        <Icon name={isOpen ? 'down' : 'right'} small />
        <span>{props.title}</span>
        <span class="fal-dim fal-num">{asOf}</span>
      </button>
      {isOpen && (
        <ul class="fal-tree" aria-label={props.title}>
          {props.apps.map(app => (
            <Row key={app.alias} app={app} isOffline={props.view.link === 'offline'} host={props.host} instance={props.instance} />
          ))}
          {!props.apps.length && <li class="fal-empty fal-sm">{props.empty}</li>}
        </ul>
      )}
    </>
  );
}

const STATES: Record<AppSummary['state'], { kind: StatusKind; word: string }> = {
  deploying: { kind: 'busy', word: 'Deploying' },
  idle: { kind: 'idle', word: 'Idle' },
  starting: { kind: 'busy', word: 'Starting' },
  serving: { kind: 'ok', word: 'Serving' },
  failing: { kind: 'err', word: 'Failing' }
};

/** True for an app that serves with fewer runners than it needs, because starts fail. */
function isDegraded(app: AppSummary): boolean {
  return app.state === 'serving' && app.state_reason !== null;
}

/** State of an app in words: "Serving, 2 runners". */
export function stateText(app: AppSummary): string {
  const runners = app.active_runners ? `, ${count(app.active_runners, 'runner')}` : '';
  const reason = (app.state === 'failing' || isDegraded(app)) && app.state_reason ? `, ${app.state_reason}` : runners;
  const detail = app.state === 'idle' ? ', starts on request' : reason;
  return `${STATES[app.state].word}${detail}`;
}

function Row({ app, isOffline, host, instance }: { app: AppSummary; isOffline: boolean; host: Host; instance: string }): JSX.Element {
  const shown = isDegraded(app) ? { kind: 'warn' as const, word: 'Degraded' } : STATES[app.state];
  const { kind, word } = isOffline ? { kind: 'offline' as const, word: 'Not connected' } : shown;
  const text = isOffline ? `was ${STATES[app.state].word.toLowerCase()}` : stateText(app);
  return (
    <li class="fal-app" data-alias={app.alias}>
      <span class={toneOf(kind)} title={word}>
        <StatusIcon kind={kind} />
      </span>
      <span class="fal-grow">
        <span class="nm fal-trunc" title={app.alias}>
          {app.alias}
        </span>
        <span class="sub" title={app.revision ? `revision ${app.revision}` : undefined}>
          {text}
          {app.revision && !app.ephemeral ? `, rev ${shortId(app.revision)}` : ''}
        </span>
      </span>
      <span class="acts">
        <CopyButton text={app.urls.run} label={`Copy URL of ${app.alias}`} />
        {host.openPlayground && app.revision && <IconButton icon="open" label={`Open playground of ${app.alias}`} onClick={() => host.openPlayground?.(instance, app.alias)} />}
      </span>
    </li>
  );
}

function Empty({ host }: { host: Host }): JSX.Element {
  return (
    <div class="fal-empty">
      <strong>No apps yet</strong>
      <div>
        Put this above an <code>App</code> class in a cell and run it:
      </div>
      <div class="fal-snippet fal-grow">
        <pre class="fal-code">{STARTER}</pre>
      </div>
      <div class="fal-row fal-wrap">
        {host.insertCell && <Button kind="primary" icon="plus" label="Insert a starter cell" onClick={() => host.insertCell?.(STARTER_CELL)} />}
        <CopyButton text={STARTER} label="Copy these lines" wide />
      </div>
    </div>
  );
}

const STARTER_CELL = `%load_ext fal_notebook
import fal_notebook as fal


class Hello(fal.App):
    @fal.endpoint("/")
    def hello(self, name: str = "world") -> str:
        return f"Hello, {name}"


%fal run Hello`;

/** Shown only when the answer takes over 300 ms. */
function Loading(): JSX.Element | null {
  const [isLate, setLate] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), 300);
    return () => clearTimeout(timer);
  }, []);
  return isLate ? (
    <div aria-busy="true" aria-label="Loading apps" role="img">
      {[96, 64, 120].map(width => (
        <div class="fal-skelrow" key={width}>
          <span class="fal-skel" style={{ width: `${width}px` }} />
          <span class="fal-skel" style={{ width: `${width / 2}px` }} />
        </div>
      ))}
    </div>
  ) : null;
}

function Foot({ view }: { view: AppsView }): JSX.Element {
  const now = useNow(view.link === 'offline' ? 5_000 : null);
  if (view.link === 'offline') {
    return (
      <div class="fal-panel-foot">
        <Status kind="offline">Not connected</Status>
        <span class="fal-end fal-dim fal-num">{view.offlineSince ? ago(view.offlineSince, now) : ''}</span>
      </div>
    );
  }
  if (!view.instance) {
    return (
      <div class="fal-panel-foot">
        <Status kind="busy">Connecting</Status>
      </div>
    );
  }
  const runners = (view.apps ?? []).reduce((sum, app) => sum + app.active_runners, 0);
  return (
    <div class="fal-panel-foot">
      <Status kind="ok">{view.instance.url.replace(/^https?:\/\//, '')}</Status>
      <span class="fal-dim fal-trunc" title={`account ${view.instance.owner}`}>
        {count(runners, 'runner')}
      </span>
      <span class="fal-end fal-dim">live</span>
    </div>
  );
}
