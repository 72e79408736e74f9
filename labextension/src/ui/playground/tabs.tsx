// What the playgrounds of calls and of sessions share: the tabs with form, JSON and code, and what was filled in.
//
// The values are kept in memory by app and endpoint, so that they survive a new draw of the output; they are never
// written into the notebook.
import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import { newForm, type FormAction, type FormState } from '../../state/form';
import { CopyButton, Icon } from '../base/parts';
import { SchemaForm } from '../form/Form';
import { readJson } from '../form/controls';
import type { Endpoint } from '../form/endpoints';
import type { Json } from '../form/normalise';
import { validate, type Problems } from '../form/validate';
import { isRecord, toSend, type Value } from '../form/values';

/** What is kept of one endpoint: what was filled in, and its last request or session. */
export interface Kept<R> {
  form: FormState;
  request: R;
  signature: string;
}

const kept = new Map<string, Kept<unknown>>();
let mounts = 0;

/** Return a prefix that makes the ids of one mount its own. */
export function newPrefix(): string {
  return `fal${++mounts}`;
}

/** Return what was kept for an endpoint, or a fresh form. */
export function keptOf<R>(key: string, endpoint: Endpoint, nothing: R): Kept<R> {
  const signature = JSON.stringify(endpoint.parts);
  const found = kept.get(key) as Kept<R> | undefined;
  if (found && found.signature === signature) {
    return found;
  }
  const form = newForm(endpoint.parts);
  // A changed form keeps what was filled in where the names still exist.
  const carried = found ? { ...form, value: carry(form.value, found.form.value) } : form;
  return { form: carried, request: found?.request ?? nothing, signature };
}

/** Keep the present state of an endpoint. */
export function keep<R>(key: string, state: Kept<R>): void {
  kept.set(key, state);
}

function carry(fresh: Value, old: Value): Value {
  if (!isRecord(fresh) || !isRecord(old)) {
    return typeof fresh === typeof old && Array.isArray(fresh) === Array.isArray(old) ? old : fresh;
  }
  return Object.fromEntries(Object.entries(fresh).map(([key, value]) => [key, key in old ? carry(value, old[key]) : value])) as Value;
}

export type Tab = 'Form' | 'JSON' | 'Code';
const TABS: Tab[] = ['Form', 'JSON', 'Code'];

/** Let the focused box hand over what it hands over only when it is left. */
export function commit(root: HTMLElement | null): void {
  const active = (root?.getRootNode() as ShadowRoot | undefined)?.activeElement;
  if (active?.tagName === 'INPUT' && root?.contains(active)) {
    active.dispatchEvent(new Event('change', { bubbles: true }));
  }
}

/** Return what is wrong with what was filled in. */
export function problemsOf(endpoint: Endpoint, form: FormState): Problems {
  const value = isRecord(form.value) ? form.value : {};
  return Object.assign({}, ...Object.entries(endpoint.parts).map(([name, node]) => validate(node, value[name], form.choices, [name]))) as Problems;
}

/** Return what an endpoint adds to its app's address. */
export function subPath(endpoint: Endpoint): string {
  return endpoint.path === '/' ? '' : endpoint.path;
}

/** Return the body as it is sent. */
export function bodyOf(form: FormState): Json | undefined {
  return toSend(isRecord(form.value) ? form.value['body'] : undefined);
}

/** The tabs' heads. */
export function Tabs(props: { tab: Tab; prefix: string; onTab: (tab: Tab) => void }): JSX.Element {
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

interface FormTabProps {
  endpoint: Endpoint;
  form: FormState;
  dispatch: (action: FormAction) => void;
  prefix: string;
  /** Raised when the first wrong field is to get the focus. */
  focusProblem: number;
}

export function FormTab(props: FormTabProps): JSX.Element {
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

export function JsonTab({ form, dispatch }: { form: FormState; dispatch: (action: FormAction) => void }): JSX.Element {
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

/** The call in one of several languages. */
export function CodeTab(props: { texts: Record<string, string>; help: string | null }): JSX.Element {
  const languages = Object.keys(props.texts);
  const [language, setLanguage] = useState(languages[0] ?? '');
  const text = props.texts[language] ?? '';
  return (
    <div class="fal-stack">
      <span class="fal-row">
        <span class="fal-seg" role="radiogroup" aria-label="Language">
          {languages.map(name => (
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
      {props.help && <div class="fal-help">{props.help}</div>}
    </div>
  );
}
