// Controls for single values: text, number, switch, choice, JSON.
//
// Text is kept as typed (`0.50`, `1x`) and its meaning goes into the form. Validation runs when a box is left.
import type { JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { Icon } from '../base/parts';
import { idOf, useForm, type ControlProps } from './context';
import type { ChoiceNode, Json, JsonNode, ListNode, Node, NumberNode, StringNode } from './normalise';
import { getAt, keyOf, type Path, type Value } from './values';
import { validate } from './validate';

/** Return value, setter and the attributes that tie an input to its label and its error. */
export function useField(props: ControlProps) {
  const { state, dispatch, prefix } = useForm();
  const { node, path, isRequired } = props;
  const value = getAt(state.value, path);
  const key = keyOf(path);
  const id = idOf(prefix, path);
  const check = (current: Value = value): void =>
    dispatch({ type: 'check', path, problem: validate(node, current, state.choices, path, isRequired)[key] ?? null });
  return {
    value,
    id,
    problem: state.problems[key] ?? null,
    round: state.round,
    set: (next: Value) => dispatch({ type: 'set', path, value: next }),
    check,
    aria: {
      id,
      'aria-invalid': state.problems[key] ? true : undefined,
      'aria-describedby': `${id}-help`,
      'aria-required': isRequired || undefined
    } as const
  };
}

/** Keep the text of a box while it still means the form's value. */
function useText(value: Value, round: number, show: (value: Value) => string, read: (text: string) => Value) {
  const [text, setText] = useState(() => show(value));
  const current = JSON.stringify(read(text)) === JSON.stringify(value) ? text : show(value);
  useEffect(() => setText(show(value)), [round]);
  return [current, setText] as const;
}

const asText = (value: Value): string => (value === undefined || value === null ? '' : typeof value === 'string' ? value : JSON.stringify(value));

export function TextControl(props: ControlProps<StringNode>): JSX.Element {
  const { node } = props;
  const field = useField(props);
  const set = (text: string): void => field.set(text === '' && node.nullable ? null : text);
  const hint = exampleOf(node);
  if (node.isLong) {
    return (
      <textarea
        {...field.aria}
        class="fal-area"
        rows={3}
        placeholder={hint}
        value={asText(field.value)}
        onInput={event => set(event.currentTarget.value)}
        onBlur={() => field.check()}
      />
    );
  }
  const type = node.format === 'password' ? 'password' : node.format === 'date' ? 'date' : node.format === 'date-time' ? 'datetime-local' : 'text';
  const isMoment = type === 'datetime-local';
  return (
    <input
      {...field.aria}
      class="fal-input"
      type={type}
      step={isMoment ? 1 : undefined}
      placeholder={hint}
      autocomplete="off"
      spellcheck={false}
      value={isMoment ? toLocal(field.value) : asText(field.value)}
      onInput={event => set(isMoment ? toUtc(event.currentTarget.value) : event.currentTarget.value)}
      onBlur={() => field.check()}
    />
  );
}

function exampleOf(node: Node): string | undefined {
  const examples = node.schema['examples'];
  return Array.isArray(examples) && typeof examples[0] === 'string' ? examples[0] : undefined;
}

/** UTC in the form, local time in the box. */
function toLocal(value: Value): string {
  const date = typeof value === 'string' ? new Date(value) : null;
  if (!date || Number.isNaN(date.getTime())) {
    return '';
  }
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

function toUtc(text: string): string {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? text : date.toISOString();
}

const NUMBER = /^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$/i;

function readNumber(text: string, nullable: boolean): Value {
  if (text.trim() === '') {
    return nullable ? null : undefined;
  }
  return NUMBER.test(text) ? Number(text) : text;
}

export function NumberControl(props: ControlProps<NumberNode>): JSX.Element {
  const { node } = props;
  const field = useField(props);
  const [text, setText] = useText(field.value, field.round, asText, typed => readNumber(typed, node.nullable));
  const write = (typed: string): void => {
    setText(typed);
    field.set(readNumber(typed, node.nullable));
  };
  const box = (
    <input
      {...field.aria}
      class="fal-input fal-num"
      inputMode={node.isInteger ? 'numeric' : 'decimal'}
      autocomplete="off"
      value={text}
      onInput={event => write(event.currentTarget.value)}
      onKeyDown={event => stepByKey(event, node, field.value, number => write(String(number)))}
      onBlur={() => field.check()}
    />
  );
  if (node.min === null || node.max === null) {
    return box;
  }
  const at = typeof field.value === 'number' ? Math.min(node.max, Math.max(node.min, field.value)) : node.min;
  const share = node.max > node.min ? ((at - node.min) / (node.max - node.min)) * 100 : 0;
  // The box does all that the slider does, by the same keys, so readers meet one control and not two.
  return (
    <div class="fal-num-field">
      <input
        class="fal-range"
        type="range"
        aria-hidden="true"
        tabIndex={-1}
        min={node.min}
        max={node.max}
        step={node.step}
        value={at}
        style={{ '--v': `${share}%` }}
        onInput={event => write(event.currentTarget.value)}
        onChange={event => field.check(Number(event.currentTarget.value))}
      />
      {box}
    </div>
  );
}

/** Arrows move one step, Page keys ten, Home and End to the bounds. */
function stepByKey(event: KeyboardEvent, node: NumberNode, value: Value, write: (value: number) => void): void {
  const steps: Record<string, number> = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
  const by = steps[event.key];
  const bound = event.key === 'Home' ? node.min : event.key === 'End' ? node.max : null;
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || (by === undefined && bound === null)) {
    return;
  }
  event.preventDefault();
  const start = typeof value === 'number' ? value : (node.min ?? 0);
  const moved = bound ?? Number((start + (by ?? 0) * node.step).toPrecision(12));
  write(Math.min(node.max ?? Infinity, Math.max(node.min ?? -Infinity, moved)));
}

export function SwitchControl(props: ControlProps): JSX.Element {
  const field = useField(props);
  return (
    <input {...field.aria} type="checkbox" role="switch" class="fal-switch" checked={field.value === true} onChange={event => field.set(event.currentTarget.checked)} />
  );
}

export function ChoiceControl(props: ControlProps<ChoiceNode> & { options?: Json[] }): JSX.Element {
  const { node } = props;
  const field = useField(props);
  const options = node.options.filter(option => option !== null);
  const index = options.findIndex(option => option === field.value);
  const isOpen = node.nullable || index < 0;
  return (
    <span class="fal-selectwrap">
      <select
        {...field.aria}
        class="fal-select"
        value={index < 0 ? '' : String(index)}
        onChange={event => {
          const chosen = event.currentTarget.value;
          field.set(chosen === '' ? (node.nullable ? null : undefined) : options[Number(chosen)]);
        }}
        onBlur={() => field.check()}
      >
        {isOpen && <option value="">{node.nullable ? 'none' : 'choose'}</option>}
        {options.map((option, place) => (
          <option key={place} value={String(place)}>
            {String(option)}
          </option>
        ))}
      </select>
      <Icon name="down" />
    </span>
  );
}

/** A list of numbers is one box: pasted from a list, a row of a table, a print-out. */
export function NumbersControl(props: ControlProps<ListNode>): JSX.Element {
  const { node } = props;
  const field = useField(props);
  const [text, setText] = useText(field.value, field.round, showNumbers, readNumbers);
  const problem = (): void => field.check();
  return (
    <textarea
      {...field.aria}
      class="fal-area fal-mono"
      rows={(node.maxItems ?? 0) > 16 ? 4 : 2}
      spellcheck={false}
      value={text}
      onInput={event => {
        setText(event.currentTarget.value);
        field.set(readNumbers(event.currentTarget.value));
      }}
      onBlur={problem}
    />
  );
}

export function showNumbers(value: Value): string {
  return Array.isArray(value) ? value.map(asText).join(', ') : asText(value);
}

export function readNumbers(text: string): Json[] {
  const words = text.split(/[\s,;[\]()]+/).filter(word => word !== '');
  return words.map(word => (NUMBER.test(word) ? Number(word) : word));
}

/** Any JSON value, for schemas that have no field of their own. */
export function JsonControl(props: ControlProps<JsonNode>): JSX.Element {
  const field = useField(props);
  const show = (value: Value): string => (value === undefined ? '' : JSON.stringify(value, null, 2));
  const [text, setText] = useState(() => show(field.value));
  const { dispatch } = useForm();
  useEffect(() => setText(show(field.value)), [field.round]);
  return (
    <textarea
      {...field.aria}
      class="fal-area fal-mono"
      rows={4}
      spellcheck={false}
      value={text}
      onInput={event => {
        setText(event.currentTarget.value);
        const read = readJson(event.currentTarget.value);
        if (read.error === null) {
          field.set(read.value);
        }
      }}
      onBlur={() => checkJson(text, props.path, dispatch, field.check)}
    />
  );
}

function checkJson(text: string, path: Path, dispatch: ReturnType<typeof useForm>['dispatch'], check: () => void): void {
  const { error } = readJson(text);
  if (error) {
    dispatch({ type: 'check', path, problem: error });
  } else {
    check();
  }
}

/** Read JSON text; empty text is no value. */
export function readJson(text: string): { value: Value; error: string | null } {
  if (text.trim() === '') {
    return { value: undefined, error: null };
  }
  try {
    return { value: JSON.parse(text) as Json, error: null };
  } catch (error) {
    return { value: undefined, error: `Not JSON: ${error instanceof Error ? error.message : String(error)}.` };
  }
}
