// The form of one endpoint: fields in the schema's order, groups for what nests.
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import type { FormAction, FormState } from '../../state/form';
import { Button, Icon, IconButton } from '../base/parts';
import { ChoiceControl, JsonControl, NumberControl, NumbersControl, SwitchControl, TextControl, useField } from './controls';
import { FileControl } from './FileControl';
import { Form as Context, idOf, useForm, type ControlProps } from './context';
import { typeText, type BooleanNode, type ChoiceNode, type DictNode, type Field, type ListNode, type Node, type ObjectNode, type UnionNode } from './normalise';
import { choiceOf, getAt, initial, initialOn, isRecord, keyOf, type Path, type Value } from './values';

interface FormProps {
  parts: Record<string, Node>;
  state: FormState;
  dispatch: (action: FormAction) => void;
  prefix: string;
  /** Raised when the first wrong field is to get the focus. */
  focusProblem: number;
}

/** Draw the fields of all parts. */
export function SchemaForm(props: FormProps): JSX.Element {
  const root = useRef<HTMLDivElement>(null);
  const [wanted, focus] = useState<Path | null>(null);
  useEffect(() => {
    if (wanted) {
      root.current?.querySelector<HTMLElement>('#' + CSS.escape(idOf(props.prefix, wanted)))?.focus();
    }
  }, [wanted]);
  useEffect(() => {
    if (props.focusProblem) {
      root.current?.querySelector<HTMLElement>('[aria-invalid="true"], [data-invalid="true"]')?.focus();
    }
  }, [props.focusProblem]);
  const context = useMemo(
    () => ({ state: props.state, dispatch: props.dispatch, prefix: props.prefix, focus }),
    [props.state, props.dispatch, props.prefix]
  );
  return (
    <Context.Provider value={context}>
      <div ref={root} class="fal-stack-16" key={props.state.round}>
        {Object.entries(props.parts).map(([name, node]) =>
          node.kind === 'object' && !node.nullable ? (
            <Fields key={name} fields={node.fields} path={[name]} />
          ) : (
            <FieldView key={name} node={node} path={[name]} name={node.title ?? name} isRequired />
          )
        )}
      </div>
    </Context.Provider>
  );
}

function Fields(props: { fields: Field[]; path: Path; hidden?: string | null }): JSX.Element {
  const shown = props.fields.filter(field => field.node.kind !== 'const' && field.name !== props.hidden);
  return (
    <>
      {shown.map(field => (
        <FieldView key={field.name} node={field.node} path={[...props.path, field.name]} name={field.name} isRequired={field.isRequired} />
      ))}
    </>
  );
}

interface FieldProps {
  node: Node;
  path: Path;
  name: string;
  isRequired: boolean;
}

/** A field with label, kind, help and error; groups bring their own head. */
function FieldView({ node, path, name, isRequired }: FieldProps): JSX.Element {
  const label = node.title ?? name;
  const props = { node, path, label, isRequired };
  if (node.kind === 'object' || node.kind === 'dict' || node.kind === 'union' || (node.kind === 'list' && (node.nullable || isNested(node)))) {
    return <Group {...props} />;
  }
  if (node.kind === 'list' && node.item.kind !== 'number') {
    return (
      <Frame {...props} isGroup help={node.description}>
        <Items {...props} node={node} />
      </Frame>
    );
  }
  return (
    <Frame {...props} isInline={node.kind === 'boolean' && !node.nullable} help={<Help node={node} path={path} />} name={name}>
      <Leaf {...props} />
    </Frame>
  );
}

function isNested(node: ListNode): boolean {
  return !['string', 'number', 'boolean', 'choice'].includes(node.item.kind);
}

/** The control alone, as used under a label and in lists. */
function Leaf(props: ControlProps): JSX.Element {
  const { node } = props;
  switch (node.kind) {
    case 'string':
      return node.media ? <FileControl {...props} node={node} media={node.media} /> : <TextControl {...props} node={node} />;
    case 'number':
      return <NumberControl {...props} node={node} />;
    case 'boolean':
      return node.nullable ? <ChoiceControl {...props} node={asChoice(node)} /> : <SwitchControl {...props} />;
    case 'choice':
      return <ChoiceControl {...props} node={node} />;
    case 'list':
      return <NumbersControl {...props} node={node} />;
    default:
      return <JsonControl {...props} node={{ ...node, kind: 'json' }} />;
  }
}

function asChoice(node: BooleanNode): ChoiceNode {
  return { ...node, kind: 'choice', options: [true, false] };
}

function Help({ node, path }: { node: Node; path: Path }): JSX.Element | null {
  const { state } = useForm();
  const value = getAt(state.value, path);
  const size = Array.isArray(value) ? value.length : 0;
  const fill = node.kind === 'list' ? `${size}${node.maxItems !== null ? ` of ${node.maxItems}` : ''} numbers. Paste a list or a row of a table.` : '';
  const text = [node.description, fill].filter(Boolean).join(' ');
  return text ? <>{text}</> : null;
}

interface FrameProps extends ControlProps {
  name?: string;
  isInline?: boolean;
  isGroup?: boolean;
  help: ComponentChildren;
  children: ComponentChildren;
}

function Frame(props: FrameProps): JSX.Element {
  const field = useField(props);
  const { node, label, name } = props;
  const isRenamed = name !== undefined && label.toLowerCase().replace(/\s+/g, '_') !== name.toLowerCase();
  const kind = (isRenamed ? `${name}: ` : '') + typeText(node) + listFill(node, field.value);
  const head = (
    <div class="fal-label">
      {props.isInline && props.children}
      {props.isGroup ? <span id={`${field.id}-label`}>{label}</span> : <label for={field.id}>{label}</label>}
      <span class="fal-type">{kind}</span>
    </div>
  );
  return (
    <div
      class={`fal-field${field.problem ? ' is-invalid' : ''}`}
      role={props.isGroup ? 'group' : undefined}
      aria-labelledby={props.isGroup ? `${field.id}-label` : undefined}
    >
      {head}
      {!props.isInline && props.children}
      <div id={`${field.id}-help`}>
        {field.problem ? <Problem text={field.problem} /> : props.help && <div class="fal-help fal-num">{props.help}</div>}
      </div>
    </div>
  );
}

function listFill(node: Node, value: Value): string {
  const isPlain = node.kind === 'list' && node.item.kind !== 'number' && node.maxItems !== null;
  return isPlain && Array.isArray(value) ? ` (${value.length} now)` : '';
}

function Problem({ text }: { text: string }): JSX.Element {
  return (
    <div class="fal-field-msg">
      <Icon name="err" />
      <span>{text}</span>
    </div>
  );
}

/** Object, dict, union or nested list, with a switch where null may be sent. */
function Group(props: ControlProps): JSX.Element {
  const field = useField(props);
  const { node, path, label } = props;
  const isOn = field.value !== null && field.value !== undefined;
  const showBody = isOn || !node.nullable;
  return (
    <fieldset class="fal-group" aria-label={label}>
      <div class="fal-group-head">
        <span class="fal-grow fal-trunc">
          {label} <span class="fal-type fal-mono fal-dim fal-xs">{typeText(node)}</span>
        </span>
        {node.nullable && (
          <input
            type="checkbox"
            role="switch"
            class="fal-switch"
            aria-label={`Send ${label}`}
            checked={isOn}
            onChange={event => field.set(event.currentTarget.checked ? (initialOn(node) ?? null) : null)}
          />
        )}
      </div>
      {(showBody || field.problem || node.description) && (
        <div class="fal-group-body">
          {node.description && <div class="fal-help">{node.description}</div>}
          {showBody && <GroupBody {...props} />}
          {field.problem && <Problem text={field.problem} />}
        </div>
      )}
      <span id={`${field.id}-help`} class="fal-sr" data-path={keyOf(path)} />
    </fieldset>
  );
}

function GroupBody(props: ControlProps): JSX.Element | null {
  const { node, path } = props;
  switch (node.kind) {
    case 'object':
      return <Fields fields={node.fields} path={path} />;
    case 'dict':
      return <Members {...props} node={node} />;
    case 'union':
      return <Alternatives {...props} node={node} />;
    case 'list':
      return node.item.kind === 'number' ? <NumbersControl {...props} node={node} /> : <Items {...props} node={node} />;
    default:
      return null;
  }
}

function Alternatives({ node, path, label }: ControlProps<UnionNode>): JSX.Element {
  const { state, dispatch, prefix } = useForm();
  const index = state.choices[keyOf(path)] ?? choiceOf(node, getAt(state.value, path));
  const chosen = node.options[index]?.node;
  const choose = (next: number): void => {
    const option = node.options[next];
    dispatch({ type: 'choose', path, index: next, value: option && startOf(option.node) });
  };
  return (
    <>
      <span class="fal-selectwrap">
        <select class="fal-select" aria-label={`Kind of ${label}`} value={String(index)} onChange={event => choose(Number(event.currentTarget.value))}>
          {node.options.map((option, place) => (
            <option key={place} value={String(place)}>
              {option.label}
            </option>
          ))}
        </select>
        <Icon name="down" />
      </span>
      {chosen?.kind === 'object' ? (
        <Fields key={index} fields={(chosen as ObjectNode).fields} path={path} hidden={node.tag} />
      ) : (
        chosen && <Bare key={`${prefix}${index}`} node={chosen} path={path} label={label} />
      )}
    </>
  );
}

function startOf(node: Node): Value {
  return node.kind === 'string' ? '' : initial(node);
}

/** A control whose label is said only to readers: items, members, alternatives. */
function Bare({ node, path, label }: { node: Node; path: Path; label: string }): JSX.Element {
  const { state, prefix } = useForm();
  const id = idOf(prefix, path);
  const problem = state.problems[keyOf(path)];
  const isDeep = ['object', 'dict', 'union'].includes(node.kind) || (node.kind === 'list' && node.item.kind !== 'number');
  if (isDeep) {
    return node.kind === 'object' && !node.nullable ? (
      <fieldset class="fal-group" aria-label={label}>
        <div class="fal-group-body">
          <Fields fields={node.fields} path={path} />
        </div>
      </fieldset>
    ) : (
      <Group node={node} path={path} label={label} isRequired />
    );
  }
  return (
    <div class={`fal-field fal-itembox${problem ? ' is-invalid' : ''}`}>
      <label class="fal-sr" for={id}>
        {label}
      </label>
      <Leaf node={node} path={path} label={label} isRequired />
      <div id={`${id}-help`}>{problem && <Problem text={problem} />}</div>
    </div>
  );
}

function Items({ node, path, label }: ControlProps<ListNode>): JSX.Element {
  const { state, dispatch, focus } = useForm();
  const value = getAt(state.value, path);
  const items = Array.isArray(value) ? value : [];
  const isFull = node.maxItems !== null && items.length >= node.maxItems;
  const write = (next: Value[], at: number): void => {
    dispatch({ type: 'set', path, value: next as Value });
    focus([...path, Math.max(0, Math.min(at, next.length - 1))]);
  };
  const blank = (): Value => initial(node.item) ?? (node.item.kind === 'string' ? '' : null);
  const insert = (at: number): void => write([...items.slice(0, at), blank(), ...items.slice(at)], at);
  const remove = (at: number): void => write(items.filter((_, index) => index !== at), at - 1);
  const move = (from: number, to: number): void => {
    if (to >= 0 && to < items.length) {
      const next = [...items];
      next.splice(to, 0, ...next.splice(from, 1));
      write(next, to);
    }
  };
  const onKey = (event: KeyboardEvent, at: number): void => {
    const box = event.target as HTMLInputElement;
    const isBox = box.tagName === 'INPUT' && box.type === 'text';
    const acts: [boolean, () => void][] = [
      [event.key === 'Enter' && !event.shiftKey && isBox && !isFull, () => insert(at + 1)],
      [event.key === 'Backspace' && isBox && box.value === '', () => remove(at)],
      [event.key === 'ArrowUp' && event.altKey, () => move(at, at - 1)],
      [event.key === 'ArrowDown' && event.altKey, () => move(at, at + 1)]
    ];
    const act = acts.find(([fits]) => fits)?.[1];
    if (act) {
      event.preventDefault();
      event.stopPropagation();
      act();
    }
  };
  return (
    <div class="fal-stack-4">
      {items.map((_, index) => (
        <div class="fal-listitem" key={index} onKeyDown={event => onKey(event, index)}>
          <span class="fal-num" aria-hidden="true">
            {index + 1}
          </span>
          <Bare node={node.item} path={[...path, index]} label={`${label} ${index + 1}`} />
          <IconButton icon="x" label={`Remove item ${index + 1}`} onClick={() => remove(index)} />
        </div>
      ))}
      {!isFull && (
        <div>
          <Button dense icon="plus" label="Add" onClick={() => insert(items.length)} />
        </div>
      )}
    </div>
  );
}

function Members({ node, path, label }: ControlProps<DictNode>): JSX.Element {
  const { state, dispatch } = useForm();
  const value = getAt(state.value, path);
  const members = isRecord(value) ? Object.entries(value) : [];
  const write = (next: [string, Value][]): void => dispatch({ type: 'set', path, value: Object.fromEntries(next) as Value });
  const rename = (from: string, to: string): void => {
    if (to && !members.some(([key]) => key === to)) {
      write(members.map(([key, member]) => [key === from ? to : key, member]));
    }
  };
  const add = (): void => {
    let number = members.length + 1;
    while (members.some(([key]) => key === `key${number}`)) {
      number += 1;
    }
    write([...members, [`key${number}`, initial(node.value) ?? (node.value.kind === 'string' ? '' : null)]]);
  };
  return (
    <div class="fal-stack-4">
      {members.map(([key]) => (
        <div class="fal-dictitem" key={key}>
          <input class="fal-input fal-mono" aria-label={`${label} key`} value={key} onChange={event => rename(key, event.currentTarget.value)} />
          <Bare node={node.value} path={[...path, key]} label={`${label} ${key}`} />
          <IconButton icon="x" label={`Remove ${key}`} onClick={() => write(members.filter(([name]) => name !== key))} />
        </div>
      ))}
      <div>
        <Button dense icon="plus" label="Add" onClick={add} />
      </div>
    </div>
  );
}
