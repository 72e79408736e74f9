// A field that holds the address of a file: picked, dropped or pasted and then kept, or typed.
import type { JSX } from 'preact';
import { useEffect, useReducer, useRef, useState } from 'preact/hooks';
import type { Progress } from '../../api/upload';
import { Button, Icon, IconButton } from '../base/parts';
import type { IconName } from '../base/icons';
import { knownOf, remember, useFileDoor } from '../files';
import { bytes, left } from '../words';
import type { ControlProps } from './context';
import { useField } from './controls';
import type { MediaKind, StringNode } from './normalise';

const KINDS: Record<MediaKind, { icon: IconName; noun: string; accept: string; help: string }> = {
  image: { icon: 'image', noun: 'an image', accept: 'image/*', help: 'PNG, JPEG or WebP, or a URL' },
  audio: { icon: 'audio', noun: 'a recording', accept: 'audio/*', help: 'WAV, MP3, OGG or FLAC, or a URL' },
  video: { icon: 'video', noun: 'a video', accept: 'video/*', help: 'MP4 or WebM, or a URL' },
  file: { icon: 'file', noun: 'a file', accept: '', help: 'Any file, or a URL' }
};

type State =
  | { phase: 'rest' }
  | { phase: 'sending'; name: string; progress: Progress; startedAt: number }
  | { phase: 'failed'; file: File; reason: string };
type Action = { type: 'begin'; file: File; at: number } | { type: 'progress'; progress: Progress } | { type: 'rest' } | { type: 'failed'; file: File; reason: string };

function reduce(state: State, action: Action): State {
  switch (action.type) {
    case 'begin':
      return { phase: 'sending', name: action.file.name, progress: { sent: 0, total: action.file.size }, startedAt: action.at };
    case 'progress':
      return state.phase === 'sending' ? { ...state, progress: action.progress } : state;
    case 'failed':
      return { phase: 'failed', file: action.file, reason: action.reason };
    case 'rest':
      return { phase: 'rest' };
  }
}

/** Sends files and keeps what became of the last one. */
function useSending(set: (url: string) => void) {
  const door = useFileDoor();
  const [state, dispatch] = useReducer(reduce, { phase: 'rest' } as State);
  const stop = useRef<AbortController | null>(null);
  useEffect(() => () => stop.current?.abort(), []);
  const send = (file: File): void => {
    stop.current?.abort();
    const mine = new AbortController();
    stop.current = mine;
    dispatch({ type: 'begin', file, at: performance.now() });
    const report = (progress: Progress): void => {
      if (!mine.signal.aborted) {
        dispatch({ type: 'progress', progress });
      }
    };
    door.take(file, report, mine.signal).then(
      url => {
        if (!mine.signal.aborted) {
          remember(url, file);
          dispatch({ type: 'rest' });
          set(url);
        }
      },
      (error: unknown) => {
        if (!mine.signal.aborted) {
          dispatch({ type: 'failed', file, reason: error instanceof Error ? error.message : String(error) });
        }
      }
    );
  };
  const cancel = (): void => {
    stop.current?.abort();
    dispatch({ type: 'rest' });
  };
  return { state, send, cancel };
}

export function FileControl(props: ControlProps<StringNode> & { media: MediaKind }): JSX.Element {
  const field = useField(props);
  const value = typeof field.value === 'string' ? field.value : '';
  const [isTyping, type] = useState(false);
  const { state, send, cancel } = useSending(url => {
    type(false);
    field.set(url);
  });
  const zone = useZone(send);
  const clear = (): void => field.set(props.node.nullable ? null : undefined);
  const isSet = value !== '' && state.phase === 'rest' && !isTyping;
  return (
    <div class={`fal-drop${zone.over ? ' is-over' : ''}${field.problem ? ' is-invalid' : ''}`} {...zone.handlers}>
      {zone.picker(KINDS[props.media].accept)}
      {zone.over ? (
        <Over name={zone.over} />
      ) : state.phase === 'sending' ? (
        <Sending {...state} id={field.id} media={props.media} onCancel={cancel} />
      ) : state.phase === 'failed' ? (
        <Failed id={field.id} label={props.label} name={state.file.name} reason={state.reason} onAgain={() => send(state.file)} onDismiss={cancel} />
      ) : isSet ? (
        <Chosen id={field.id} url={value} media={props.media} label={props.label} onReplace={zone.pick} onType={() => type(true)} onRemove={clear} />
      ) : isTyping ? (
        <Typed field={field} value={value} onText={text => (text ? field.set(text) : clear())} onDone={() => type(false)} />
      ) : (
        <Empty id={field.id} media={props.media} label={props.label} isInvalid={field.problem !== null} onPick={zone.pick} onType={() => type(true)} />
      )}
    </div>
  );
}

/** The zone takes what is dropped or pasted on it, and opens the system's dialog. */
function useZone(send: (file: File) => void) {
  const [over, hover] = useState<string | null>(null);
  const input = useRef<HTMLInputElement>(null);
  const take = (files: FileList | null | undefined, event: Event): void => {
    const file = files?.[0];
    if (file) {
      event.preventDefault();
      event.stopPropagation();
      send(file);
    }
  };
  const handlers = {
    onDragOver: (event: DragEvent) => {
      if (event.dataTransfer?.types.includes('Files')) {
        // JupyterLab would open the file in a tab of its own.
        event.preventDefault();
        event.stopPropagation();
        hover(nameIn(event.dataTransfer));
      }
    },
    onDragLeave: (event: DragEvent) => {
      if (!(event.currentTarget as HTMLElement).contains(event.relatedTarget as globalThis.Node | null)) {
        hover(null);
      }
    },
    onDrop: (event: DragEvent) => {
      hover(null);
      take(event.dataTransfer?.files, event);
    },
    onPaste: (event: ClipboardEvent) => take(event.clipboardData?.files, event)
  };
  const picker = (accept: string): JSX.Element => (
    <input
      ref={input}
      type="file"
      hidden
      accept={accept || undefined}
      onChange={event => {
        take(event.currentTarget.files, event);
        event.currentTarget.value = '';
      }}
    />
  );
  return { over, handlers, picker, pick: () => input.current?.click() };
}

/** Browsers tell a file's name only when it is dropped. */
function nameIn(data: DataTransfer): string {
  return data.items[0]?.getAsFile()?.name || 'this file';
}

function Over({ name }: { name: string }): JSX.Element {
  return (
    <>
      <span class="fal-busy">
        <Icon name="dl" />
      </span>
      <div class="fal-grow fal-busy fal-strong">Drop to use {name}</div>
    </>
  );
}

function Empty(props: { id: string; media: MediaKind; label: string; isInvalid: boolean; onPick: () => void; onType: () => void }): JSX.Element {
  const kind = KINDS[props.media];
  return (
    <>
      <span class="fal-dim">
        <Icon name={kind.icon} />
      </span>
      <div class="fal-grow">
        <div>
          Drop {kind.noun}, paste it, or{' '}
          <button
            type="button"
            class="fal-link"
            id={props.id}
            aria-label={`${props.label}: choose a file`}
            aria-describedby={`${props.id}-help`}
            data-invalid={props.isInvalid || undefined}
            onClick={props.onPick}
          >
            choose a file
          </button>
        </div>
        <div class="fal-help">{kind.help}</div>
      </div>
      <IconButton icon="link" label="Enter a URL" onClick={props.onType} />
    </>
  );
}

function Sending(props: { id: string; media: MediaKind; name: string; progress: Progress; startedAt: number; onCancel: () => void }): JSX.Element {
  const { sent, total } = props.progress;
  const share = total ? Math.round((sent / total) * 100) : 0;
  return (
    <>
      <span class="fal-dim">
        <Icon name={KINDS[props.media].icon} />
      </span>
      <div class="fal-grow fal-stack-4">
        <div class="fal-row">
          <span class="fal-trunc">{props.name}</span>
          <span class="fal-help fal-num fal-end">{left(sent, total, performance.now() - props.startedAt)}</span>
        </div>
        <div class="fal-bar" role="progressbar" aria-label={`Uploading ${props.name}`} aria-valuemin={0} aria-valuemax={100} aria-valuenow={share}>
          <i style={{ width: `${share}%` }} />
        </div>
      </div>
      <button type="button" id={props.id} class="fal-btn fal-btn-icon" aria-label="Cancel upload" title="Cancel upload" onClick={props.onCancel}>
        <Icon name="x" />
      </button>
    </>
  );
}

function Failed(props: { id: string; label: string; name: string; reason: string; onAgain: () => void; onDismiss: () => void }): JSX.Element {
  return (
    <>
      <span class="fal-err">
        <Icon name="err" />
      </span>
      <div class="fal-grow" role="alert">
        <div class="fal-trunc">{props.name} was not uploaded</div>
        <div class="fal-help">{props.reason}</div>
      </div>
      <div class="fal-row fal-row-4">
        <button type="button" id={props.id} class="fal-btn fal-btn-dense" aria-label={`${props.label}: try again`} data-invalid="true" onClick={props.onAgain}>
          Try again
        </button>
        <IconButton icon="x" label="Dismiss" onClick={props.onDismiss} />
      </div>
    </>
  );
}

function Chosen(props: { id: string; url: string; media: MediaKind; label: string; onReplace: () => void; onType: () => void; onRemove: () => void }): JSX.Element {
  const door = useFileDoor();
  const [measured, setMeasured] = useState({ url: '', text: '' });
  const measure = (text: string): void => setMeasured({ url: props.url, text });
  const size = measured.url === props.url ? measured.text : '';
  const file = knownOf(props.url);
  const shown = file.local ?? door.show(props.url);
  const isOurs = file.local !== null || props.url.startsWith('data:');
  const facts = [size, file.size ? bytes(file.size) : ''].filter(Boolean).join(', ') || (isOurs ? '' : props.url);
  return (
    <>
      {props.media === 'image' && canShow(props.url) ? (
        <img
          class="fal-thumb"
          src={shown}
          alt={file.name}
          onLoad={event => measure(`${event.currentTarget.naturalWidth} × ${event.currentTarget.naturalHeight}`)}
          onError={() => measure('no image at this address')}
        />
      ) : (
        <span class="fal-dim">
          <Icon name={KINDS[props.media].icon} />
        </span>
      )}
      <div class="fal-grow">
        <div class="fal-trunc" title={isOurs ? undefined : props.url}>
          {file.name}
        </div>
        <div class="fal-help fal-num fal-trunc">{facts}</div>
      </div>
      <div class="fal-row fal-row-4">
        <button type="button" id={props.id} class="fal-btn fal-btn-dense" aria-label={`${props.label}: replace`} aria-describedby={`${props.id}-help`} onClick={props.onReplace}>
          Replace
        </button>
        <IconButton icon="link" label="Enter a URL" onClick={props.onType} />
        <IconButton icon="x" label="Remove file" onClick={props.onRemove} />
      </div>
      {props.media === 'audio' && canShow(props.url) && <audio class="fal-drop-media" controls preload="metadata" src={shown} aria-label={file.name} />}
      {props.media === 'video' && canShow(props.url) && <video class="fal-drop-media" controls preload="metadata" src={shown} aria-label={file.name} />}
    </>
  );
}

/** Half a typed address is not fetched. */
function canShow(url: string): boolean {
  return /^(https?:\/\/[^/]+\/.+|data:|blob:)/.test(url);
}

function Typed(props: { field: ReturnType<typeof useField>; value: string; onText: (text: string) => void; onDone: () => void }): JSX.Element {
  const { field } = props;
  const box = useRef<HTMLInputElement>(null);
  useEffect(() => box.current?.focus(), []);
  const onKey = (event: KeyboardEvent): void => {
    if ((event.key === 'Enter' && !event.shiftKey) || event.key === 'Escape') {
      event.preventDefault();
      event.stopPropagation();
      props.onDone();
    }
  };
  return (
    <>
      <span class="fal-dim">
        <Icon name="link" />
      </span>
      <input
        {...field.aria}
        ref={box}
        class="fal-input fal-grow"
        type="text"
        inputMode="url"
        placeholder="https://…"
        autocomplete="off"
        spellcheck={false}
        // A file inside the request is not for reading.
        value={props.value.startsWith('data:') ? '' : props.value}
        onInput={event => props.onText(event.currentTarget.value.trim())}
        onKeyDown={onKey}
        onBlur={() => field.check()}
      />
      <Button dense label="Done" onClick={props.onDone} />
    </>
  );
}
