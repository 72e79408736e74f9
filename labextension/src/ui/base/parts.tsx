// The small parts that every surface is made of: icon, status, button, copy, banner, fold, phase track.
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { ICONS, type IconName } from './icons';

export function Icon(props: { name: IconName; small?: boolean; spin?: boolean }): JSX.Element {
  const names = ['fal-i', props.small ? 'fal-i-12' : '', props.spin ? 'fal-spin' : ''].filter(Boolean).join(' ');
  return <svg class={names} viewBox="0 0 16 16" aria-hidden="true" dangerouslySetInnerHTML={{ __html: ICONS[props.name] }} />;
}

export type StatusKind = 'ok' | 'busy' | 'wait' | 'warn' | 'err' | 'idle' | 'off' | 'offline';

const STATUS: Record<StatusKind, { icon: IconName; tone: string }> = {
  ok: { icon: 'check', tone: 'ok' },
  busy: { icon: 'spin', tone: 'busy' },
  wait: { icon: 'wait', tone: 'busy' },
  warn: { icon: 'warn', tone: 'warn' },
  err: { icon: 'err', tone: 'err' },
  idle: { icon: 'pause', tone: 'idle' },
  off: { icon: 'off', tone: 'idle' },
  offline: { icon: 'offline', tone: 'idle' }
};

export function StatusIcon({ kind }: { kind: StatusKind }): JSX.Element {
  return <Icon name={STATUS[kind].icon} spin={kind === 'busy'} />;
}

/** The colour class of a status for its icon alone. */
export function toneOf(kind: StatusKind): string {
  return 'fal-' + STATUS[kind].tone;
}

export function Status(props: { kind: StatusKind; children: ComponentChildren }): JSX.Element {
  return (
    <span class={`fal-status fal-status-${STATUS[props.kind].tone}`}>
      <StatusIcon kind={props.kind} />
      <span>{props.children}</span>
    </span>
  );
}

interface ButtonProps {
  label: string;
  icon?: IconName;
  kind?: 'primary' | 'quiet' | 'plain';
  dense?: boolean;
  busy?: string | null;
  title?: string;
  disabled?: boolean;
  /** Of a button that shows and hides something. */
  expanded?: boolean;
  onClick: () => void;
}

/** A verb; while busy its label is the activity. */
export function Button(props: ButtonProps): JSX.Element {
  const look = [props.kind && props.kind !== 'plain' ? `fal-btn-${props.kind}` : '', props.dense ? 'fal-btn-dense' : ''].join(' ');
  return (
    <button type="button" class={`fal-btn ${look}`} title={props.title} aria-expanded={props.expanded} disabled={props.disabled || !!props.busy} onClick={props.onClick}>
      {props.icon && <Icon name={props.busy ? 'spin' : props.icon} spin={!!props.busy} />}
      <span class="fal-lbl">{props.busy ?? props.label}</span>
    </button>
  );
}

export function IconButton(props: { label: string; icon: IconName; onClick: () => void }): JSX.Element {
  return (
    <button type="button" class="fal-btn fal-btn-icon" aria-label={props.label} title={props.label} onClick={props.onClick}>
      <Icon name={props.icon} />
    </button>
  );
}

/** Put text on the clipboard, also where the page is not a secure context. */
export async function copyText(text: string, near: HTMLElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement('textarea');
    area.value = text;
    near.append(area);
    area.select();
    const isDone = document.execCommand('copy');
    area.remove();
    return isDone;
  }
}

/** Copies with one click and says so in its place for a moment. */
export function CopyButton(props: { text: string; label: string; wide?: boolean; word?: string; quiet?: boolean; dense?: boolean }): JSX.Element {
  const [said, say] = useState<'yes' | 'no' | null>(null);
  useEffect(() => {
    const timer = said && setTimeout(() => say(null), 1_500);
    return () => {
      if (timer) {
        clearTimeout(timer);
      }
    };
  }, [said]);
  const copy = (event: MouseEvent): void => {
    void copyText(props.text, (event.currentTarget as HTMLElement).parentElement as HTMLElement).then(isDone => say(isDone ? 'yes' : 'no'));
  };
  const isWide = props.wide || props.word !== undefined;
  const word = said === 'yes' ? 'Copied' : said === 'no' ? 'Not allowed' : isWide ? (props.word ?? 'Copy') : '';
  const look = props.quiet ? `fal-btn-quiet ${props.dense ? 'fal-btn-dense' : ''}` : isWide ? 'fal-btn-dense' : 'fal-btn-icon';
  return (
    <button type="button" class={`fal-btn ${look}`} aria-label={props.label} title={said ? word : props.label} onClick={copy}>
      <Icon name={said === 'yes' ? 'tick' : 'copy'} />
      {isWide && <span class="fal-lbl">{word}</span>}
    </button>
  );
}

export function Banner(props: { kind: 'warn' | 'err' | 'busy' | 'idle'; children: ComponentChildren; action?: ComponentChildren; alert?: boolean }): JSX.Element {
  const icons = { warn: 'warn', err: 'err', busy: 'spin', idle: 'info' } as const;
  return (
    <div class={`fal-banner fal-banner-${props.kind}`} role={props.alert ? 'alert' : 'status'}>
      <Icon name={icons[props.kind]} spin={props.kind === 'busy'} />
      <div class="fal-stack-4">{props.children}</div>
      {props.action}
    </div>
  );
}

export interface Phase {
  name: string;
  state: 'done' | 'now' | 'next' | 'failed' | 'cached';
  time: string | null;
}

const PHASE: Record<Phase['state'], { look: string; icon: IconName }> = {
  done: { look: 'is-done', icon: 'tick' },
  cached: { look: 'is-done', icon: 'tick' },
  now: { look: 'is-now', icon: 'spin' },
  next: { look: 'is-next', icon: 'pause' },
  failed: { look: 'is-err', icon: 'err' }
};

export function PhaseTrack({ phases }: { phases: Phase[] }): JSX.Element {
  return (
    <ol class="fal-track" aria-label="Phases">
      {phases.map(phase => (
        <li key={phase.name} class={PHASE[phase.state].look}>
          <Icon name={PHASE[phase.state].icon} small spin={phase.state === 'now'} />
          <span>{phase.name}</span>
          {phase.time && <span class="fal-num">{phase.time}</span>}
          {phase.state === 'failed' && <span class="fal-sr">failed</span>}
        </li>
      ))}
    </ol>
  );
}

/** The time now in ms, told anew every `every_ms` while something runs. */
export function useNow(every_ms: number | null): number {
  const [now, tell] = useState(Date.now());
  useEffect(() => {
    const timer = every_ms ? setInterval(() => tell(Date.now()), every_ms) : null;
    return () => {
      if (timer) {
        clearInterval(timer);
      }
    };
  }, [every_ms]);
  return every_ms ? now : Date.now();
}

/** Text in which `code` between backquotes is set as code. */
export function Prose({ text }: { text: string }): JSX.Element {
  return <>{text.split('`').map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part))}</>;
}
