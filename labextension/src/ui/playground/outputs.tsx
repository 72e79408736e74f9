// Results by what they are: members and values, image, audio, video, text, JSON tree.
import type { JSX } from 'preact';
import { useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks';
import { CopyButton, Icon } from '../base/parts';
import type { IconName } from '../base/icons';
import { knownOf, useFileDoor } from '../files';
import { CompareSwitch, ImageCompare } from './compare';
import { bytes, count, digits } from '../words';

export interface Media {
  url: string;
  type: 'image' | 'audio' | 'video' | 'file';
  note: string;
  /** As the App calls the file. */
  file?: string;
}

/** A box with a head: what it is, its size, what can be done with it. */
export function Output(props: { icon: IconName; name: string; note: string; copy?: string; link?: string; file?: string; tools?: preact.ComponentChildren; children: preact.ComponentChildren }): JSX.Element {
  return (
    <div class="fal-out">
      <div class="fal-out-head">
        <span class="fal-dim">
          <Icon name={props.icon} />
        </span>
        <span class="fal-trunc">
          <b>{props.name}</b> <span class="fal-dim">{props.note}</span>
        </span>
        <span class="fal-end">
          {props.tools}
          {props.copy !== undefined && <CopyButton text={props.copy} label={`Copy ${props.name}`} />}
          {props.link && (
            <a class="fal-btn fal-btn-icon" href={props.link} download={props.file ?? props.name} target="_blank" rel="noreferrer" aria-label={`Download ${props.name}`} title={`Download ${props.name}`}>
              <Icon name="dl" />
            </a>
          )}
        </span>
      </div>
      {props.children}
    </div>
  );
}

/** A JSON answer: files shown as what they are, plain members as a list, the rest as a tree. */
export function JsonOutput({ value, text, input }: { value: unknown; text: string; input?: string | null }): JSX.Element {
  const whole = mediaOf('result', value);
  if (whole) {
    return <MediaOutput name="result" media={whole} input={input} />;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return typeof value === 'string' ? <TextOutput name="result" text={value} /> : <TreeOutput name="result" value={value} text={text} />;
  }
  const members = Object.entries(value);
  const media = members.flatMap(([name, member]) => mediaIn(name, member));
  const plain = members.filter(([, member]) => isPlain(member));
  const rest = members.filter(([name, member]) => !isPlain(member) && !media.some(item => item.from === name));
  return (
    <>
      {media.map(item => (
        <MediaOutput key={item.name} name={item.name} media={item.media} input={media.length === 1 ? input : null} />
      ))}
      {plain.length > 0 && (
        <dl class="fal-kv fal-md">
          {plain.map(([name, member]) => (
            <PlainMember key={name} name={name} value={member} />
          ))}
        </dl>
      )}
      {rest.length > 0 && <TreeOutput name="JSON" value={Object.fromEntries(rest)} text={JSON.stringify(value, null, 2)} />}
      {members.length === 0 && <TreeOutput name="result" value={value} text={text} />}
    </>
  );
}

function PlainMember({ name, value }: { name: string; value: unknown }): JSX.Element {
  return (
    <>
      <dt>
        <code>{name}</code>
      </dt>
      <dd class={typeof value === 'number' ? 'fal-num fal-strong' : 'fal-pre'} title={typeof value === 'number' ? String(value) : undefined}>
        {typeof value === 'string' ? value : typeof value === 'number' ? digits(value) : JSON.stringify(value)}
      </dd>
    </>
  );
}

function isPlain(value: unknown): boolean {
  return value === null || ['number', 'boolean'].includes(typeof value) || (typeof value === 'string' && value.length < 2_000 && !mediaOf('', value));
}

function mediaIn(from: string, value: unknown): { from: string; name: string; media: Media }[] {
  const own = mediaOf(from, value);
  if (own) {
    return [{ from, name: from, media: own }];
  }
  const items = Array.isArray(value) ? value.slice(0, 24).map((item, index) => ({ name: `${from} ${index + 1}`, media: mediaOf(from, item) })) : [];
  return items.length && items.every(item => item.media) ? items.map(item => ({ from, name: item.name, media: item.media as Media })) : [];
}

const ENDING = /\.(png|jpe?g|webp|gif|svg|avif|wav|mp3|ogg|flac|m4a|mp4|webm|mov)(\?|#|$)/i;

/** Recognise `data:` URIs, addresses with a known ending, and fal's file objects. */
export function mediaOf(name: string, value: unknown): Media | null {
  if (typeof value === 'string') {
    const type = /^data:(image|audio|video)\//.exec(value)?.[1] ?? (/^https?:\/\//.test(value) ? typeOfEnding(value, name) : null);
    return type ? { url: value, type: type as Media['type'], note: value.startsWith('data:') ? sizeOfData(value) : '', ...nameOf(value, null) } : null;
  }
  const file = value as { url?: unknown; content_type?: unknown; file_name?: unknown; width?: number; height?: number; file_size?: number } | null;
  if (typeof file !== 'object' || file === null || typeof file.url !== 'string' || !/^(https?:|data:|blob:)/.test(file.url)) {
    return null;
  }
  const said = typeof file.content_type === 'string' ? file.content_type : '';
  const isFile = said !== '' || typeof file.file_name === 'string';
  const type = /^(image|audio|video)\//.exec(said)?.[1] ?? mediaOf(name, file.url)?.type ?? (isFile ? 'file' : null);
  const size = file.width && file.height ? `${file.width} × ${file.height}` : '';
  const kind = said.split(/[/;]/)[1] ?? '';
  const short = type === 'file' ? said : kind.replace(/^x-|\+xml$/g, '').toUpperCase();
  const note = [[size, short].filter(Boolean).join(' '), file.file_size ? bytes(file.file_size) : ''].filter(Boolean).join(', ');
  return type ? { url: file.url, type: type as Media['type'], note, ...nameOf(file.url, file.file_name) } : null;
}

/** Name a file for people, where it has a name that says more than its address. */
function nameOf(url: string, said: unknown): { file?: string } {
  const name = typeof said === 'string' && said ? said : /^https?:/.test(url) ? knownOf(url).name : '';
  return name ? { file: name } : {};
}

/** A file of fal's storage, whatever its ending. */
const KEPT = /\/files\/[0-9a-f]{32}\/[^/?#]+$/;

function typeOfEnding(url: string, name: string): string | null {
  const ending = ENDING.exec(url)?.[1]?.toLowerCase();
  if (!ending) {
    return /^(image|img|picture)(_url)?$/.test(name) ? 'image' : KEPT.test(url) ? 'file' : null;
  }
  return /wav|mp3|ogg|flac|m4a/.test(ending) ? 'audio' : /mp4|webm|mov/.test(ending) ? 'video' : 'image';
}

function sizeOfData(uri: string): string {
  const comma = uri.indexOf(',');
  const kind = uri.slice(5, uri.search(/[;,]/)).split('/')[1]?.toUpperCase() ?? '';
  return `${kind}, ${bytes(Math.round((uri.length - comma - 1) * 0.75))}`;
}

export function MediaOutput({ name, media, input }: { name: string; media: Media; input?: string | null }): JSX.Element {
  const url = useFileDoor().show(media.url);
  const icons = { audio: 'audio', video: 'video', file: 'file' } as const;
  const [failed, fail] = useState('');
  if (media.type === 'image') {
    return <ImageOutput name={name} media={media} url={url} input={input ?? null} />;
  }
  const onError = (): void => fail('could not be loaded');
  return (
    <Output icon={icons[media.type]} name={name} note={failed || media.note} link={url} file={media.file}>
      {media.type === 'audio' && <audio controls preload="metadata" src={url} aria-label={name} onError={onError} />}
      {media.type === 'video' && <video controls preload="metadata" src={url} aria-label={name} class="fal-img-out" onError={onError} />}
      {media.type === 'file' && (
        <div class="fal-file-out">
          <a class="fal-link fal-trunc" href={url} download={media.file ?? name} target="_blank" rel="noreferrer">
            {media.file ?? name}
          </a>
        </div>
      )}
    </Output>
  );
}

/** An image, beside the one that went in where both have the same form. */
function ImageOutput({ name, media, url, input }: { name: string; media: Media; url: string; input: string | null }): JSX.Element {
  const door = useFileDoor();
  const [size, measure] = useState<[number, number] | null>(null);
  const [before, measureBefore] = useState<[number, number] | null>(null);
  const [failed, fail] = useState('');
  const [isComparing, compare] = useState(true);
  const shown = input === null ? null : (knownOf(input).local ?? door.show(input));
  const canCompare = size !== null && before !== null && Math.abs((size[0] * before[1]) / (size[1] * before[0]) - 1) < 0.02;
  const measured = size && !media.note.includes('\u00d7') ? `${size[0]} \u00d7 ${size[1]}` : '';
  const note = failed || [measured, media.note].filter(Boolean).join(/^[A-Z]/.test(media.note) ? ' ' : ', ');
  return (
    <Output icon="image" name={name} note={note} link={url} file={media.file} tools={canCompare && <CompareSwitch isOn={isComparing} onSwitch={compare} />}>
      {canCompare && isComparing && shown ? (
        <ImageCompare name={name} input={shown} result={url} size={size} />
      ) : (
        <img
          class="fal-img-out"
          src={url}
          alt={`Result: ${name}`}
          onLoad={event => measure([event.currentTarget.naturalWidth, event.currentTarget.naturalHeight])}
          onError={() => fail('could not be loaded')}
        />
      )}
      {shown && !before && (
        <img hidden src={shown} alt="" onLoad={event => measureBefore([event.currentTarget.naturalWidth, event.currentTarget.naturalHeight])} />
      )}
    </Output>
  );
}

export function TextOutput(props: { name: string; text: string; note?: string; isLive?: boolean }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    // The newest words stay in sight while they come.
    if (props.isLive && box.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [props.text, props.isLive]);
  return (
    <Output icon="text" name={props.name} note={props.note ?? count(props.text.length, 'character')} copy={props.text}>
      <div ref={box} class="fal-text-out" tabIndex={0} aria-label={props.name} role="region">
        {props.text}
        {props.isLive && <span class="fal-caret" />}
      </div>
    </Output>
  );
}

export function TreeOutput(props: { name: string; value: unknown; text: string }): JSX.Element {
  return (
    <Output icon="file" name={props.name} note={shapeOf(props.value)} copy={props.text}>
      <div class="fal-json fal-log-box" tabIndex={0} role="region" aria-label={`${props.name} as JSON`}>
        <Branch name={null} value={props.value} depth={0} />
      </div>
    </Output>
  );
}

function shapeOf(value: unknown): string {
  if (Array.isArray(value)) {
    return count(value.length, 'item');
  }
  return typeof value === 'object' && value !== null ? count(Object.keys(value).length, 'member') : typeof value;
}

const PAGE = 50;

/** One node of the tree; folded beyond depth 2 or 50 items, long lists in pages. */
function Branch({ name, value, depth }: { name: string | null; value: unknown; depth: number }): JSX.Element {
  const members = useMemo(() => (typeof value === 'object' && value !== null ? Object.entries(value) : null), [value]);
  const [isOpen, open] = useState(depth < 2 && (members?.length ?? 0) <= PAGE);
  const [shown, show] = useState(PAGE);
  const pad = '  '.repeat(depth);
  const label = name === null ? '' : name;
  if (!members) {
    return (
      <span class="fal-jsonrow">
        {pad}  <span class="k">{label}</span> <Scalar value={value} />
      </span>
    );
  }
  const kind = Array.isArray(value) ? `list[${members.length}]` : `object[${members.length}]`;
  return (
    <>
      <span class="fal-jsonrow">
        {pad}
        <button type="button" aria-expanded={isOpen} onClick={() => open(!isOpen)}>
          <span class="tw">
            <Icon name={isOpen ? 'down' : 'right'} small />
          </span>
          <span class="k">{label}</span> <span class="c">{kind}</span>
        </button>
        {!isOpen && <Preview value={value} />}
      </span>
      {isOpen && members.slice(0, shown).map(([key, member]) => <Branch key={key} name={key} value={member} depth={depth + 1} />)}
      {isOpen && members.length > shown && (
        <span class="fal-jsonrow">
          {pad}
          <button type="button" class="fal-link" onClick={() => show(shown + 10 * PAGE)}>
            {members.length - shown} more
          </button>
        </span>
      )}
    </>
  );
}

function Preview({ value }: { value: unknown }): JSX.Element | null {
  if (!Array.isArray(value) || typeof value[0] !== 'number') {
    return null;
  }
  const more = value.length > 3 ? ` … ${value.length - 3} more` : '';
  return (
    <span>
      {'  '}
      <span class="n">{value.slice(0, 3).join(', ')}</span>
      <span class="c">{more}</span>
    </span>
  );
}

function Scalar({ value }: { value: unknown }): JSX.Element {
  if (typeof value === 'string') {
    const cut = value.length > 400 ? value.slice(0, 400) + '…' : value;
    return <span class="s">{JSON.stringify(cut)}</span>;
  }
  return <span class={typeof value === 'number' ? 'n' : 'c'}>{String(value)}</span>;
}
