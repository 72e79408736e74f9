// Two images of one form over each other, with a rule between them that moves.
import type { JSX } from 'preact';
import { useRef, useState } from 'preact/hooks';
import { Icon } from '../base/parts';

/** Compare, or the result alone. */
export function CompareSwitch({ isOn, onSwitch }: { isOn: boolean; onSwitch: (isOn: boolean) => void }): JSX.Element {
  return (
    <span class="fal-seg" role="radiogroup" aria-label="View">
      <button type="button" role="radio" aria-checked={isOn} onClick={() => onSwitch(true)}>
        Compare
      </button>
      <button type="button" role="radio" aria-checked={!isOn} onClick={() => onSwitch(false)}>
        Result
      </button>
    </span>
  );
}

interface CompareProps {
  name: string;
  input: string;
  result: string;
  size: [number, number];
}

const STEP = 5;

/** Drag or arrows move the rule, Home and End go to the edges; Space, held, shows the input. */
export function ImageCompare({ name, input, result, size }: CompareProps): JSX.Element {
  const [at, move] = useState(50);
  const [isHeld, hold] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  const place = isHeld ? 100 : at;
  const follow = (event: PointerEvent): void => {
    const area = box.current?.getBoundingClientRect();
    if (area?.width) {
      move(Math.min(100, Math.max(0, Math.round(((event.clientX - area.left) / area.width) * 100))));
    }
  };
  const onDown = (event: PointerEvent): void => {
    box.current?.setPointerCapture(event.pointerId);
    follow(event);
  };
  const onKey = (event: KeyboardEvent): void => {
    const next: Record<string, number> = { ArrowLeft: at - STEP, ArrowRight: at + STEP, ArrowDown: at - STEP, ArrowUp: at + STEP, Home: 0, End: 100 };
    const wanted = next[event.key];
    if (event.key === ' ') {
      event.preventDefault();
      hold(true);
    } else if (wanted !== undefined) {
      event.preventDefault();
      move(Math.min(100, Math.max(0, wanted)));
    }
  };
  return (
    <div
      ref={box}
      class="fal-compare"
      style={{ aspectRatio: `${size[0]} / ${size[1]}`, maxWidth: `${Math.max(size[0], 240)}px`, margin: '0 auto' }}
      onPointerDown={onDown}
      onPointerMove={event => event.buttons === 1 && follow(event)}
    >
      <img src={result} alt={`Result: ${name}`} draggable={false} />
      <img class="a" src={input} alt="Input" draggable={false} style={{ clipPath: `inset(0 ${100 - place}% 0 0)` }} />
      <i class="rule" style={{ left: `${place}%` }} />
      <button
        type="button"
        class="knob"
        role="slider"
        aria-label="Share of the input that is shown"
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={place}
        style={{ left: `${place}%` }}
        onKeyDown={onKey}
        onKeyUp={event => event.key === ' ' && hold(false)}
        onBlur={() => hold(false)}
      >
        <Icon name="lr" small />
      </button>
      {place > 12 && (
        <span class="cap" style={{ left: '8px' }}>
          input
        </span>
      )}
      {place < 88 && (
        <span class="cap" style={{ right: '8px' }}>
          result
        </span>
      )}
    </div>
  );
}
