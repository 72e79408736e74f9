// An error: what happened, where, why, the one thing to do; the traceback with the person's own frames open.
import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import type { ErrorBody } from '../../api/wire.gen';
import { Icon, Prose } from '../base/parts';
import type { Host } from '../host';
import { CellLink } from './Facts';
import { readTraceback, type Frame } from './traceback';

/** The place of an error in words, empty where it has none. */
export function placeText(error: ErrorBody): string {
  const where = error.where ?? {};
  const place = typeof where['cell'] === 'number' ? `In [${where['cell']}]` : typeof where['file'] === 'string' ? where['file'] : null;
  const line = typeof where['line'] === 'number' ? `line ${where['line']}` : null;
  return [place, line].filter(Boolean).join(', ');
}

/** All of an error as text, for the clipboard. */
export function errorText(error: ErrorBody): string {
  return [`${error.message} [${error.code}]`, placeText(error), error.fix, error.traceback].filter(Boolean).join('\n');
}

export function Place({ error, host }: { error: ErrorBody; host: Host }): JSX.Element | null {
  const label = placeText(error);
  const where = error.where ?? {};
  if (!label) {
    return null;
  }
  const cellId = typeof where['cell_id'] === 'string' ? where['cell_id'] : null;
  return <CellLink label={label} cellId={cellId} line={typeof where['line'] === 'number' ? where['line'] : null} host={host} />;
}

export function Problem({ error, host }: { error: ErrorBody; host: Host }): JSX.Element {
  const place = placeText(error);
  return (
    <div class="fal-stack-12">
      <div class="fal-stack-4">
        <div class="fal-strong fal-pre">
          <Prose text={error.message} />
        </div>
        {(place || error.fix) && (
          <div>
            {place && (
              <>
                <Place error={error} host={host} />.{' '}
              </>
            )}
            {error.fix && <Prose text={error.fix} />}
          </div>
        )}
      </div>
      {error.traceback && <Traceback text={error.traceback} />}
    </div>
  );
}

export function Traceback({ text }: { text: string }): JSX.Element {
  const [isOpen, open] = useState(false);
  const frames = readTraceback(text);
  const own = frames.filter(frame => frame.isOwn);
  if (!own.length) {
    return (
      <pre class="fal-log fal-log-box fal-tb" tabIndex={0} role="region" aria-label="Details">
        {text.trimEnd()}
      </pre>
    );
  }
  const others = frames.length - own.length;
  return (
    <div class="fal-tb" tabIndex={0} role="region" aria-label="Traceback">
      {(isOpen ? frames : own).map((frame, index) => (
        <FrameView key={index} frame={frame} />
      ))}
      {others > 0 && (
        <button type="button" class="fal-fold" aria-expanded={isOpen} onClick={() => open(!isOpen)}>
          <Icon name={isOpen ? 'down' : 'right'} small />
          <span class="fal-dim">{isOpen ? 'Only frames of your code' : `${others} more ${others === 1 ? 'frame' : 'frames'} outside your code`}</span>
        </button>
      )}
    </div>
  );
}

function FrameView({ frame }: { frame: Frame }): JSX.Element {
  return (
    <>
      <div class="fal-tb-frame">
        <Icon name={frame.isOwn ? 'cell' : 'file'} />
        <span class="fal-strong">
          {frame.place}, line {frame.line}
        </span>
        <span class="fal-dim">in {frame.name}</span>
      </div>
      {frame.code && (
        <div class="fal-tb-code">
          <i class="hit">{frame.line}</i>
          <span class="hit">{frame.code}</span>
        </div>
      )}
    </>
  );
}
