// The playground: endpoint, form, JSON and code on the left, the newest answer on the right.
//
// What was filled in is kept in memory by app and endpoint, so that it survives a new draw of the output;
// it is never written into the notebook.
import type { JSX } from 'preact';
import { useEffect, useMemo, useReducer, useRef, useState } from 'preact/hooks';
import type { Transport } from '../../api/transport';
import { newForm, reduceForm, type FormAction, type FormState } from '../../state/form';
import { NO_REQUEST, reduceRequest, send, type RequestState } from '../../state/request';
import { Banner, Button, CopyButton, Icon } from '../base/parts';
import { SchemaForm } from '../form/Form';
import { readJson } from '../form/controls';
import type { Endpoint } from '../form/endpoints';
import { placeErrors } from '../form/errors422';
import type { Json } from '../form/normalise';
import { isRecord, toSend, type Value } from '../form/values';
import { validate, type Problems } from '../form/validate';
import { Result } from './Result';
import { queryOf } from './query';
import { curl, python, type SnippetCall } from './snippets';

export interface PlaygroundProps {
  transport: Transport;
  /** `owner/alias`. */
  app: string;
  /** Address for people, shown in the code. */
  url: string;
  needsKey: boolean;
  endpoint: Endpoint;
  /** A sentence above the form, e.g. that it is of the previous version. */
  note?: string | null;
  /** Called when a request has ended. */
  onAnswer?: () => void;
  /** Opens the log beside this form. */
  onLogs?: () => void;
}

interface Kept {
  form: FormState;
  request: RequestState;
  signature: string;
}

const kept = new Map<string, Kept>();
let mounts = 0;

function useKept(key: string, endpoint: Endpoint): Kept {
  const signature = JSON.stringify(endpoint.parts);
  const found = kept.get(key);
  if (found && found.signature === signature) {
    return found;
  }
  const form = newForm(endpoint.parts);
  // A changed form keeps what was filled in where the names still exist.
  const carried = found ? { ...form, value: carry(form.value, found.form.value) } : form;
  return { form: carried, request: found?.request ?? NO_REQUEST, signature };
}

function carry(fresh: Value, old: Value): Value {
  if (!isRecord(fresh) || !isRecord(old)) {
    return typeof fresh === typeof old && Array.isArray(fresh) === Array.isArray(old) ? old : fresh;
  }
  return Object.fromEntries(Object.entries(fresh).map(([key, value]) => [key, key in old ? carry(value, old[key]) : value])) as Value;
}

type Tab = 'Form' | 'JSON' | 'Code';
const TABS: Tab[] = ['Form', 'JSON', 'Code'];

export function Playground(props: PlaygroundProps): JSX.Element {
  const key = `${props.transport.key} ${props.app} ${props.endpoint.path}`;
  const start = useMemo(() => useKept(key, props.endpoint), []);
  const [form, dispatch] = useReducer(reduceForm, start.form);
  const [request, report] = useReducer(reduceRequest, start.request);
  const [tab, setTab] = useState<Tab>('Form');
  const [focusProblem, setFocusProblem] = useState(0);
  const [wasChecked, setChecked] = useState(false);
  const prefix = useMemo(() => `fal${++mounts}`, []);
  const leave = useRef<(() => void) | null>(null);
  const root = useRef<HTMLDivElement>(null);
  const latest = useRef(form);
  latest.current = form;
  useEffect(() => {
    kept.set(key, { form, request: settled(request), signature: start.signature });
  }, [form, request]);
  useEffect(() => () => leave.current?.(), []);
  useEffect(() => {
    if (request.endedAfter !== null && request !== start.request) {
      props.onAnswer?.();
    }
  }, [request.endedAfter, request.startedAt]);
  usePlaced(props.endpoint, form, request, dispatch, () => setFocusProblem(Date.now()));

  const run = (): void => {
    if (request.phase !== 'running' && request.phase !== 'streaming') {
      commit(root.current);
      // What the box still held is in the form after this turn.
      setTimeout(() => begin(latest.current));
    }
  };
  const begin = (filled: FormState): void => {
    const problems = problemsOf(props.endpoint, filled);
    dispatch({ type: 'problems', problems, banner: [] });
    setChecked(true);
    if (Object.keys(problems).length) {
      setTab('Form');
      setFocusProblem(Date.now());
      return;
    }
    leave.current = send(props.transport, callOf(props, filled), report);
  };
  const isRunning = request.phase === 'running' || request.phase === 'streaming';
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && event.shiftKey) {
      event.preventDefault();
      event.stopPropagation();
      run();
    } else if (event.key === 'Escape' && isRunning) {
      leave.current?.();
    }
  };
  return (
    <div ref={root} onKeyDown={onKey}>
      <Tabs tab={tab} prefix={prefix} onTab={setTab} />
      <div class="fal-pg">
        <div class="fal-pg-in" role="tabpanel" id={`${prefix}-panel`} aria-labelledby={`${prefix}-${tab}`}>
          {props.note && <div class="fal-sm fal-dim">{props.note}</div>}
          {form.banner.length > 0 && (
            <Banner kind="err" alert>
              {form.banner.map(text => (
                <div key={text}>{text}</div>
              ))}
            </Banner>
          )}
          {tab === 'Form' && <FormTab {...props} form={form} dispatch={dispatch} prefix={prefix} focusProblem={focusProblem} />}
          {tab === 'JSON' && <JsonTab form={form} dispatch={dispatch} />}
          {tab === 'Code' && <CodeTab {...props} form={form} isStream={request.body.kind === 'stream'} />}
          <RunBar isRunning={isRunning} onRun={run} onStop={() => leave.current?.()} onReset={() => dispatch({ type: 'reset', parts: props.endpoint.parts })} />
        </div>
        <div class="fal-pg-out">
          <Result
            request={request}
            problems={wasChecked || request.status === 422 ? Object.keys(form.problems).length : 0}
            onStart={props.transport.start && (() => void props.transport.start?.())}
            onAgain={run}
            onLogs={props.onLogs}
          />
        </div>
      </div>
    </div>
  );
}

/** Let the focused box hand over what it hands over only when it is left. */
function commit(root: HTMLElement | null): void {
  const active = (root?.getRootNode() as ShadowRoot | undefined)?.activeElement;
  if (active?.tagName === 'INPUT' && root?.contains(active)) {
    active.dispatchEvent(new Event('change', { bubbles: true }));
  }
}

/** A request that is still running belongs to the mount that sent it. */
function settled(request: RequestState): RequestState {
  return request.phase === 'running' || request.phase === 'streaming' ? NO_REQUEST : request;
}

/** Put a 422 answer's errors under their fields, once for each answer. */
function usePlaced(endpoint: Endpoint, form: FormState, request: RequestState, dispatch: (action: FormAction) => void, onPlaced: () => void): void {
  const isInvalid = request.phase === 'done' && request.status === 422 && request.body.kind === 'json';
  useEffect(() => {
    if (isInvalid && request.body.kind === 'json') {
      const detail = (request.body.value as { detail?: unknown } | null)?.detail;
      const placed = placeErrors(detail, endpoint.parts, form.value, form.choices);
      dispatch({ type: 'problems', problems: placed.fields, banner: placed.banner });
      onPlaced();
    }
  }, [request.startedAt, isInvalid]);
}

function problemsOf(endpoint: Endpoint, form: FormState): Problems {
  const value = isRecord(form.value) ? form.value : {};
  return Object.assign({}, ...Object.entries(endpoint.parts).map(([name, node]) => validate(node, value[name], form.choices, [name]))) as Problems;
}

function callOf(props: PlaygroundProps, form: FormState): { path: string; method: string; body: string | undefined } {
  const body = bodyOf(form);
  return {
    path: `run/${props.app}${subPath(props.endpoint)}${queryOf(props.endpoint, form.value)}`,
    method: props.endpoint.method,
    body: 'body' in props.endpoint.parts ? JSON.stringify(body ?? null) : undefined
  };
}

function subPath(endpoint: Endpoint): string {
  return endpoint.path === '/' ? '' : endpoint.path;
}

function bodyOf(form: FormState): Json | undefined {
  return toSend(isRecord(form.value) ? form.value['body'] : undefined);
}

function Tabs(props: { tab: Tab; prefix: string; onTab: (tab: Tab) => void }): JSX.Element {
  const onKey = (event: KeyboardEvent): void => {
    const by = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
    if (by) {
      event.preventDefault();
      const next = TABS[(TABS.indexOf(props.tab) + by + TABS.length) % TABS.length] as Tab;
      props.onTab(next);
      (event.currentTarget as HTMLElement).querySelector<HTMLElement>(`#${props.prefix}-${next}`)?.focus();
    }
  };
  return (
    <div class="fal-tabs" role="tablist" aria-label="Playground" onKeyDown={onKey}>
      {TABS.map(tab => (
        <button
          type="button"
          key={tab}
          id={`${props.prefix}-${tab}`}
          class="fal-tab"
          role="tab"
          aria-selected={tab === props.tab}
          aria-controls={`${props.prefix}-panel`}
          tabIndex={tab === props.tab ? 0 : -1}
          onClick={() => props.onTab(tab)}
        >
          {tab}
        </button>
      ))}
    </div>
  );
}

function FormTab(props: PlaygroundProps & { form: FormState; dispatch: (action: FormAction) => void; prefix: string; focusProblem: number }): JSX.Element {
  const { endpoint } = props;
  const isEmpty = Object.values(endpoint.parts).every(node => node.kind === 'object' && !node.fields.length);
  return (
    <>
      {endpoint.description && <div class="fal-help">{endpoint.description}</div>}
      {isEmpty ? (
        <div class="fal-sm fal-dim">This endpoint takes no input.</div>
      ) : (
        <SchemaForm parts={endpoint.parts} state={props.form} dispatch={props.dispatch} prefix={props.prefix} focusProblem={props.focusProblem} />
      )}
    </>
  );
}

function JsonTab({ form, dispatch }: { form: FormState; dispatch: (action: FormAction) => void }): JSX.Element {
  const parts = isRecord(form.value) ? form.value : {};
  const only = Object.keys(parts).length === 1 ? Object.keys(parts)[0] : undefined;
  const [text, setText] = useState(() => JSON.stringify(toSend(only ? parts[only] : parts) ?? {}, null, 2));
  const { error } = readJson(text);
  return (
    <div class={`fal-field${error ? ' is-invalid' : ''}`}>
      <div class="fal-label">
        <label for="fal-json-body">Request as JSON</label>
      </div>
      <textarea
        id="fal-json-body"
        class="fal-area fal-mono"
        rows={12}
        spellcheck={false}
        value={text}
        onInput={event => {
          setText(event.currentTarget.value);
          const read = readJson(event.currentTarget.value);
          if (!read.error) {
            dispatch({ type: 'replace', value: only ? { ...parts, [only]: read.value } : ((read.value ?? {}) as Value) });
          }
        }}
      />
      {error && (
        <div class="fal-field-msg">
          <Icon name="err" />
          <span>{error}</span>
        </div>
      )}
    </div>
  );
}

function CodeTab(props: PlaygroundProps & { form: FormState; isStream: boolean }): JSX.Element {
  const [language, setLanguage] = useState<'Python' | 'curl'>('Python');
  const call: SnippetCall = {
    url: `${props.url}${subPath(props.endpoint)}${queryOf(props.endpoint, props.form.value)}`,
    method: props.endpoint.method,
    body: 'body' in props.endpoint.parts ? bodyOf(props.form) : undefined,
    needsKey: props.needsKey,
    isStream: props.isStream
  };
  const text = language === 'curl' ? curl(call) : python(call);
  return (
    <div class="fal-stack">
      <span class="fal-row">
        <span class="fal-seg" role="radiogroup" aria-label="Language">
          {(['Python', 'curl'] as const).map(name => (
            <button type="button" key={name} role="radio" aria-checked={name === language} onClick={() => setLanguage(name)}>
              {name}
            </button>
          ))}
        </span>
      </span>
      <div class="fal-snippet">
        <pre class="fal-code" tabIndex={0} role="region" aria-label={`The call in ${language}`}>
          {text}
        </pre>
        <CopyButton text={text} label={`Copy ${language} code`} wide />
      </div>
      {props.needsKey && <div class="fal-help">The key is read from the environment variable FAL_KEY.</div>}
    </div>
  );
}

function RunBar(props: { isRunning: boolean; onRun: () => void; onStop: () => void; onReset: () => void }): JSX.Element {
  return (
    // The focus stays in the field: leaving it could show an error there and move the button from under the pointer.
    <div class="fal-runbar" onMouseDown={event => event.preventDefault()}>
      {/* The name is "Run" at any time, so that tools and readers find it. */}
      <button type="button" class="fal-btn fal-btn-primary" aria-label="Run" disabled={props.isRunning} title="Run (Shift Enter)" onClick={props.onRun}>
        <Icon name={props.isRunning ? 'spin' : 'play'} spin={props.isRunning} />
        <span class="fal-lbl">Run</span>
        <span class="fal-kbd" aria-hidden="true">
          ⇧⏎
        </span>
      </button>
      {props.isRunning ? <Button kind="plain" icon="stop" label="Stop" title="Stop (Esc)" onClick={props.onStop} /> : <Button kind="quiet" label="Reset" onClick={props.onReset} />}
      <span class="fal-dim fal-sm fal-end">synchronous</span>
    </div>
  );
}
