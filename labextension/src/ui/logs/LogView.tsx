// A log: folded to its newest line, or open and following until one scrolls up.
import type { JSX } from 'preact';
import { useEffect, useLayoutEffect, useReducer, useRef, useState } from 'preact/hooks';
import type { Transport } from '../../api/transport';
import type { LogLine } from '../../api/wire.gen';
import { followLog, NO_LOG, reduceLog, type LogSource, type LogView as Lines } from '../../state/logs';
import { Icon } from '../base/parts';
import { count, logTime, shortId } from '../words';

interface FoldProps {
  transport: Transport;
  source: LogSource;
  label: string;
  /** Follow also while folded: something is going on. */
  isLive: boolean;
  /** Raised when there may be new lines though nothing is followed. */
  round: number;
  isOpen: boolean;
  onToggle: () => void;
  /** Stands before the newest line: whose it is. */
  whose?: string;
  /** Folded it says how many lines there are, not the newest. */
  counts?: boolean;
}

/** One line that opens. A stream is held only while open or live: a browser has few connections. */
export function LogFold(props: FoldProps): JSX.Element {
  const [lines, dispatch] = useReducer(reduceLog, NO_LOG);
  const source = JSON.stringify(props.source);
  const isFollowed = props.isOpen || props.isLive;
  useEffect(
    () => followLog(props.transport, props.source, isFollowed, dispatch),
    [props.transport, source, isFollowed, isFollowed ? 0 : props.round]
  );
  const newest = lines.lines.at(-1);
  const total = count(lines.lines.length + lines.dropped, 'line');
  return (
    <>
      <button type="button" class="fal-fold" aria-expanded={props.isOpen} onClick={props.onToggle}>
        <Icon name={props.isOpen ? 'down' : 'right'} small />
        <span>{props.label}</span>
        {props.isOpen ? <span class="fal-dim fal-end fal-num">{total}</span> : <span class="fal-mono fal-trunc">{props.counts ? total : [newest && props.whose, newest?.text].filter(Boolean).join('\u00a0 ')}</span>}
      </button>
      {props.isOpen && <LogView lines={lines} label={props.label} />}
    </>
  );
}

/** The open log. End goes to the newest line and follows it. */
export function LogView({ lines, label, tall }: { lines: Lines; label: string; tall?: boolean }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const [follows, setFollows] = useState(true);
  const seen = useRef(0);
  const total = lines.lines.length + lines.dropped;
  if (follows) {
    seen.current = total;
  }
  useLayoutEffect(() => {
    if (follows && box.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [total, follows]);
  const onScroll = (): void => {
    const element = box.current;
    if (element) {
      setFollows(element.scrollHeight - element.scrollTop - element.clientHeight < 8);
    }
  };
  const unseen = total - seen.current;
  return (
    <div class="fal-logwrap">
      <div
        ref={box}
        class={`fal-log ${tall ? 'fal-tall' : 'fal-log-box'}`}
        tabIndex={0}
        role="log"
        aria-live="off"
        aria-label={label}
        onScroll={onScroll}
        onKeyDown={event => event.key === 'End' && setFollows(true)}
      >
        {lines.dropped > 0 && <div class="o">{count(lines.dropped, 'older line')} not shown</div>}
        {lines.lines.map((line, index) => (
          <Line key={lines.dropped + index} line={line} start={lines.lines[0]} />
        ))}
        {!total && <div class="o">No lines yet</div>}
      </div>
      {!follows && unseen > 0 && (
        <button type="button" class="fal-btn fal-btn-dense" onClick={() => setFollows(true)}>
          <span class="fal-lbl">{count(unseen, 'new line')}</span>
        </button>
      )}
    </div>
  );
}

function Line({ line, start }: { line: LogLine; start: LogLine | undefined }): JSX.Element {
  const isBuild = line.stream === 'build';
  const offset_s = start ? (Date.parse(line.at) - Date.parse(start.at)) / 1_000 : 0;
  const look = line.stream === 'stderr' ? (/\berror\b|Traceback/i.test(line.text) ? 'e' : 'w') : line.stream === 'system' ? 'o' : '';
  return (
    <div>
      <span class="t" title={line.at}>
        {isBuild ? offset_s.toFixed(2) : logTime(line.at)}
      </span>
      {'  '}
      {line.request_id && (
        <>
          <span class="id" title={`request ${line.request_id}`}>
            {shortId(line.request_id)}
          </span>
          {'  '}
        </>
      )}
      <span class={look}>{line.text}</span>
    </div>
  );
}
