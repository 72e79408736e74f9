// The playground by itself: a tab in JupyterLab, which follows the app, or a web page, which reads it once.
import type { JSX } from 'preact';
import { useEffect, useReducer, useState } from 'preact/hooks';
import { followApp, NO_APP, reduceApp, type AppView } from '../../state/app';
import type { Transport } from '../../api/transport';
import type { AppDetail } from '../../api/wire.gen';
import { Banner, CopyButton, Icon, Status, type StatusKind } from '../base/parts';
import { StartButton } from '../card/Card';
import type { Host } from '../host';
import { LivePlayground } from './LivePlayground';

export interface PlaygroundTabProps {
  host: Host;
  instance: string;
  alias: string;
}

/** The tab in JupyterLab's main area. */
export function PlaygroundTab({ host, instance, alias }: PlaygroundTabProps): JSX.Element {
  const [transport, setTransport] = useState<Transport | null>(null);
  const [view, dispatch] = useReducer(reduceApp, NO_APP);
  useEffect(() => void host.transport(instance).then(setTransport), [instance]);
  useEffect(() => (transport ? followApp(transport, alias, dispatch) : undefined), [transport, alias]);
  return (
    <section class="fal-ui fal-card" aria-label={`Playground ${alias}`}>
      <TabHead alias={alias} view={view} />
      {view.link === 'offline' && transport && (
        <Banner kind="warn" action={transport.start && <StartButton transport={transport} />}>
          No answer from the backend. Deployed apps may still be serving.
        </Banner>
      )}
      {view.isGone && <div class="fal-sec fal-sm fal-dim">There is no app of this name now.</div>}
      {transport && view.detail && !view.isGone && (
        <div class="fal-sec fal-sec-flush">
          <LivePlayground transport={transport} detail={view.detail} />
        </div>
      )}
    </section>
  );
}

const WORDS: Record<AppDetail['state'], [StatusKind, string]> = {
  deploying: ['busy', 'Deploying'],
  idle: ['idle', 'Idle'],
  starting: ['busy', 'Starting'],
  serving: ['ok', 'Ready'],
  failing: ['err', 'Failing']
};

function TabHead({ alias, view }: { alias: string; view: AppView }): JSX.Element {
  const [kind, word]: [StatusKind, string] = view.link === 'offline' ? ['offline', 'Not connected'] : view.isGone ? ['off', 'Stopped'] : view.detail ? WORDS[view.detail.state] : ['busy', 'Connecting'];
  return (
    <div class="fal-card-head">
      <div class="fal-who">
        <span class="fal-card-title fal-trunc">{alias}</span>
        <Status kind={kind}>{word}</Status>
      </div>
      {view.detail && <Url url={view.detail.urls.run} isPublic={view.detail.auth_mode === 'public'} />}
    </div>
  );
}

function Url({ url, isPublic }: { url: string; isPublic: boolean }): JSX.Element {
  return (
    <div class="fal-row fal-row-4">
      <span class="fal-dim">
        <Icon name={isPublic ? 'globe' : 'lock'} />
      </span>
      <code class="fal-trunc">{url}</code>
      <CopyButton text={url} label="Copy URL" />
    </div>
  );
}

export interface PagePlaygroundProps {
  transport: Transport;
  detail: AppDetail;
}

/** The web page's playground. */
export function PagePlayground({ transport, detail }: PagePlaygroundProps): JSX.Element {
  return (
    <section class="fal-ui fal-card" aria-label={`Playground ${detail.alias}`}>
      <TabHead alias={detail.alias} view={{ ...NO_APP, link: 'live', detail }} />
      <div class="fal-sec fal-sec-flush">
        <LivePlayground transport={transport} detail={detail} />
      </div>
    </section>
  );
}
