// What every control of one form shares.
import { createContext } from 'preact';
import { useContext } from 'preact/hooks';
import type { FormAction, FormState } from '../../state/form';
import type { Node } from './normalise';
import { keyOf, type Path } from './values';

export interface FormContext {
  state: FormState;
  dispatch: (action: FormAction) => void;
  /** Makes ids unique within a shadow root with several forms. */
  prefix: string;
  /** Put the focus on the field at a path once it is drawn. */
  focus: (path: Path) => void;
}

export const Form = createContext<FormContext | null>(null);

/** Return the form around a control. */
export function useForm(): FormContext {
  const form = useContext(Form);
  if (!form) {
    throw new Error('a control was drawn outside its form');
  }
  return form;
}

/** Return the id of the input at a path. */
export function idOf(prefix: string, path: Path): string {
  return `${prefix}-${keyOf(path).replace(/[^\w-]/g, '_')}`;
}

/** What a control gets. */
export interface ControlProps<N extends Node = Node> {
  node: N;
  path: Path;
  label: string;
  isRequired: boolean;
}
