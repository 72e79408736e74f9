// The log of an app by itself, followed.
import type { JSX } from 'preact';
import { useEffect, useReducer, useState } from 'preact/hooks';
import type { Transport } from '../../api/transport';
import { followLog, NO_LOG, reduceLog } from '../../state/logs';
import type { Host } from '../host';
import { LogView } from './LogView';

export interface LogsProps {
  host: Host;
  instance: string;
  alias: string;
}

export function Logs({ host, instance, alias }: LogsProps): JSX.Element {
  const [transport, setTransport] = useState<Transport | null>(null);
  const [lines, dispatch] = useReducer(reduceLog, NO_LOG);
  useEffect(() => void host.transport(instance).then(setTransport), [instance]);
  useEffect(() => (transport ? followLog(transport, { app: alias }, true, dispatch) : undefined), [transport, alias]);
  return (
    <section class="fal-ui fal-card" aria-label={`Logs of ${alias}`}>
      <div class="fal-card-head">
        <div class="fal-who">
          <span class="fal-card-title fal-trunc">{alias}</span>
          <span class="fal-dim fal-sm">log</span>
        </div>
      </div>
      <LogView lines={lines} label={`Logs of ${alias}`} tall />
    </section>
  );
}
