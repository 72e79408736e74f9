// The playground of a websocket: the form is a message, sent as often as one likes while the session is open.
import type { JSX } from 'preact';
import { useEffect, useMemo, useReducer, useRef, useState } from 'preact/hooks';
import { reduceForm, type FormState } from '../../state/form';
import { connect, NO_SESSION, reduceSession, type Connection, type SessionState } from '../../state/session';
import { Button, Icon } from '../base/parts';
import { doorOf, FileDoorProvider } from '../files';
import type { Socket } from '../form/endpoints';
import { queryOf } from './query';
import type { PlaygroundProps } from './Playground';
import { SessionResult } from './SessionResult';
import { javascriptSession, pythonSession, type SessionSnippet } from './snippets';
import { bodyOf, CodeTab, commit, FormTab, JsonTab, keep, keptOf, newPrefix, problemsOf, subPath, Tabs, type Tab } from './tabs';

export interface SessionPlaygroundProps extends PlaygroundProps {
  socket: Socket;
}

export function SessionPlayground(props: SessionPlaygroundProps): JSX.Element {
  const { endpoint, transport } = props;
  const key = `${transport.key} ${props.app} ${endpoint.path}`;
  const start = useMemo(() => keptOf(key, endpoint, NO_SESSION), []);
  const door = useMemo(() => doorOf(transport), [transport]);
  const [form, dispatch] = useReducer(reduceForm, start.form);
  const [session, report] = useReducer(reduceSession, start.request);
  const [tab, setTab] = useState<Tab>('Form');
  const [focusProblem, setFocusProblem] = useState(0);
  const [text, setText] = useState('');
  const prefix = useMemo(newPrefix, []);
  const connection = useRef<Connection | null>(null);
  const root = useRef<HTMLDivElement>(null);
  const latest = useRef({ form, text });
  latest.current = { form, text };
  const hasForm = 'body' in endpoint.parts;
  useEffect(() => {
    // A session ends with its mount; what it brought stays.
    keep(key, { form, request: session.phase === 'closed' ? session : { ...session, phase: 'closed' }, signature: start.signature });
  }, [form, session]);
  useEffect(() => () => connection.current?.close(), []);

  const open = (): void => {
    connection.current = connect(transport, pathOf(props, latest.current.form), props.socket, report);
  };
  const post = (): void => {
    const { form: filled, text: typed } = latest.current;
    const problems = problemsOf(endpoint, filled);
    dispatch({ type: 'problems', problems, banner: [] });
    if (Object.keys(problems).length) {
      setTab('Form');
      setFocusProblem(Date.now());
    } else {
      connection.current?.send(hasForm ? (bodyOf(filled) ?? {}) : typed);
    }
  };
  const act = (): void => {
    if (session.phase === 'closed') {
      open();
    } else if (session.phase === 'open') {
      commit(root.current);
      // What the box still held is in the form after this turn.
      setTimeout(post);
    }
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && event.shiftKey) {
      event.preventDefault();
      event.stopPropagation();
      act();
    } else if (event.key === 'Escape' && session.phase !== 'closed') {
      connection.current?.close();
    }
  };
  return (
    <FileDoorProvider value={door}>
      <div ref={root} onKeyDown={onKey}>
        <Tabs tab={tab} prefix={prefix} onTab={setTab} />
        <div class="fal-pg">
          <div class="fal-pg-in" role="tabpanel" id={`${prefix}-panel`} aria-labelledby={`${prefix}-${tab}`}>
            {props.note && <div class="fal-sm fal-dim">{props.note}</div>}
            {tab === 'Form' && hasForm && <FormTab endpoint={endpoint} form={form} dispatch={dispatch} prefix={prefix} focusProblem={focusProblem} />}
            {tab === 'Form' && !hasForm && <Message prefix={prefix} text={text} onText={setText} />}
            {tab === 'JSON' && <JsonTab form={form} dispatch={dispatch} />}
            {tab === 'Code' && <CodeTab {...snippetsOf(props, form)} />}
            <SessionBar session={session} onAct={act} onClose={() => connection.current?.close()} />
          </div>
          <div class="fal-pg-out">
            <SessionResult session={session} isUnary={props.socket.isUnary} />
          </div>
        </div>
      </div>
    </FileDoorProvider>
  );
}

function pathOf(props: SessionPlaygroundProps, form: FormState): string {
  return `run/${props.app}${subPath(props.endpoint)}${queryOf(props.endpoint, form.value)}`;
}

function snippetsOf(props: SessionPlaygroundProps, form: FormState): { texts: Record<string, string>; help: string | null } {
  const call: SessionSnippet = {
    app: props.app,
    path: subPath(props.endpoint),
    url: props.url.replace(/^http/, 'ws') + subPath(props.endpoint),
    body: bodyOf(form) ?? {},
    needsKey: props.needsKey,
    isRealtime: props.socket.isRealtime
  };
  const texts: Record<string, string> = { Python: pythonSession(call) };
  if (props.socket.isRealtime) {
    texts['JavaScript'] = javascriptSession(call);
  }
  return { texts, help: props.socket.isRealtime ? "fal's own clients: fal-nb env prints the variables that point them at this backend." : null };
}

/** A message to an endpoint that describes none. */
function Message(props: { prefix: string; text: string; onText: (text: string) => void }): JSX.Element {
  const id = `${props.prefix}-message`;
  return (
    <div class="fal-field">
      <div class="fal-label">
        <label for={id}>Message</label>
        <span class="fal-type">text</span>
      </div>
      <textarea id={id} class="fal-area fal-mono" rows={4} spellcheck={false} value={props.text} onInput={event => props.onText(event.currentTarget.value)} />
    </div>
  );
}

function SessionBar({ session, onAct, onClose }: { session: SessionState; onAct: () => void; onClose: () => void }): JSX.Element {
  const isClosed = session.phase === 'closed';
  const isBusy = session.phase === 'connecting';
  const word = isClosed ? 'Connect' : isBusy ? 'Connecting' : 'Send';
  return (
    // The focus stays in the field, as with Run.
    <div class="fal-runbar" onMouseDown={event => event.preventDefault()}>
      <button type="button" class="fal-btn fal-btn-primary" disabled={isBusy} title={`${word} (Shift Enter)`} onClick={onAct}>
        <Icon name={isBusy ? 'spin' : isClosed ? 'plug' : 'up'} spin={isBusy} />
        <span class="fal-lbl">{word}</span>
        <span class="fal-kbd" aria-hidden="true">
          ⇧⏎
        </span>
      </button>
      {!isClosed && <Button kind="plain" icon="stop" label="Disconnect" title="Disconnect (Esc)" onClick={onClose} />}
      <span class="fal-dim fal-sm fal-end">realtime</span>
    </div>
  );
}
