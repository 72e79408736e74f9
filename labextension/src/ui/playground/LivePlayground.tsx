// The playground of an app that is there: chooses the endpoint, then draws its form.
import type { JSX } from 'preact';
import { useMemo, useState } from 'preact/hooks';
import type { Transport } from '../../api/transport';
import type { AppDetail } from '../../api/wire.gen';
import { Icon } from '../base/parts';
import { readEndpoints } from '../form/endpoints';
import { Playground, type PlaygroundProps } from './Playground';
import { SessionPlayground } from './SessionPlayground';

interface LiveProps {
  transport: Transport;
  detail: AppDetail;
  note?: string | null;
  onAnswer?: () => void;
  onLogs?: () => void;
}

export function LivePlayground({ transport, detail, note, onAnswer, onLogs }: LiveProps): JSX.Element {
  const declared = useMemo(() => new Set(detail.endpoints.map(endpoint => endpoint.path)), [detail.openapi]);
  const endpoints = useMemo(() => {
    const all = readEndpoints(detail.openapi);
    const own = all.filter(endpoint => declared.has(endpoint.path));
    return own.length ? own : all;
  }, [detail.openapi]);
  const [path, setPath] = useState(endpoints[0]?.path ?? '/');
  const endpoint = endpoints.find(one => one.path === path) ?? endpoints[0];
  if (!endpoint) {
    return <div class="fal-empty">This app describes no endpoint.</div>;
  }
  const key = `${endpoint.path} ${JSON.stringify(endpoint.parts)}`;
  const given: PlaygroundProps = {
    transport,
    app: detail.endpoint_id,
    url: detail.urls.run,
    needsKey: detail.auth_mode !== 'public',
    endpoint,
    note,
    onAnswer,
    onLogs
  };
  return (
    <>
      {endpoints.length > 1 && (
        <div class="fal-sec-tight fal-row">
          <label class="fal-dim fal-sm" for={`fal-endpoint-${detail.alias}`}>
            Endpoint
          </label>
          <span class="fal-selectwrap">
            <select id={`fal-endpoint-${detail.alias}`} class="fal-select fal-mono fal-head-select" value={endpoint.path} onChange={event => setPath(event.currentTarget.value)}>
              {endpoints.map(one => (
                <option key={one.path} value={one.path}>
                  {one.method} {one.path}
                </option>
              ))}
            </select>
            <Icon name="down" />
          </span>
        </div>
      )}
      {endpoint.socket ? (
        <SessionPlayground key={key} {...given} socket={endpoint.socket} />
      ) : (
        <Playground key={key} {...given} />
      )}
    </>
  );
}
