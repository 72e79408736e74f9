// The playground of an endpoint that is called: form, JSON and code on the left, the newest answer on the right.
import type { JSX } from 'preact';
import { useEffect, useMemo, useReducer, useRef, useState } from 'preact/hooks';
import type { Transport } from '../../api/transport';
import { reduceForm, type FormAction, type FormState } from '../../state/form';
import { NO_REQUEST, reduceRequest, send, type Call, type RequestState } from '../../state/request';
import { Banner, Button, Icon } from '../base/parts';
import { doorOf, FileDoorProvider } from '../files';
import type { Endpoint } from '../form/endpoints';
import { placeErrors } from '../form/errors422';
import { imagesIn, isRecord } from '../form/values';
import { Result } from './Result';
import { queryOf } from './query';
import { curl, python, type SnippetCall } from './snippets';
import { bodyOf, CodeTab, commit, FormTab, JsonTab, keep, keptOf, newPrefix, problemsOf, subPath, Tabs, type Tab } from './tabs';

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

export function Playground(props: PlaygroundProps): JSX.Element {
  const key = `${props.transport.key} ${props.app} ${props.endpoint.path}`;
  const start = useMemo(() => keptOf(key, props.endpoint, NO_REQUEST), []);
  const door = useMemo(() => doorOf(props.transport), [props.transport]);
  const [form, dispatch] = useReducer(reduceForm, start.form);
  const [request, report] = useReducer(reduceRequest, start.request);
  const [tab, setTab] = useState<Tab>('Form');
  const [focusProblem, setFocusProblem] = useState(0);
  const [wasChecked, setChecked] = useState(false);
  const prefix = useMemo(newPrefix, []);
  const leave = useRef<(() => void) | null>(null);
  const root = useRef<HTMLDivElement>(null);
  const latest = useRef(form);
  latest.current = form;
  useEffect(() => {
    keep(key, { form, request: settled(request), signature: start.signature });
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
    <FileDoorProvider value={door}>
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
            {tab === 'Code' && <CodeTab {...snippetsOf(props, form, request.body.kind === 'stream')} />}
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
    </FileDoorProvider>
  );
}

function snippetsOf(props: PlaygroundProps, form: FormState, isStream: boolean): { texts: Record<string, string>; help: string | null } {
  const call: SnippetCall = {
    url: `${props.url}${subPath(props.endpoint)}${queryOf(props.endpoint, form.value)}`,
    method: props.endpoint.method,
    body: 'body' in props.endpoint.parts ? bodyOf(form) : undefined,
    needsKey: props.needsKey,
    isStream
  };
  return { texts: { Python: python(call), curl: curl(call) }, help: props.needsKey ? 'The key is read from the environment variable FAL_KEY.' : null };
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

function callOf(props: PlaygroundProps, form: FormState): Call {
  const body = bodyOf(form);
  const images = Object.entries(props.endpoint.parts).flatMap(([name, node]) => imagesIn(node, isRecord(form.value) ? form.value[name] : undefined));
  return {
    path: `run/${props.app}${subPath(props.endpoint)}${queryOf(props.endpoint, form.value)}`,
    method: props.endpoint.method,
    body: 'body' in props.endpoint.parts ? JSON.stringify(body ?? null) : undefined,
    image: images.length === 1 ? (images[0] ?? null) : null
  };
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
