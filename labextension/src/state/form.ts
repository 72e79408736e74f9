// The state of one form: values, chosen alternatives, problems; a reducer.
import type { Node } from '../ui/form/normalise';
import { initial, keyOf, setAt, type Path, type Value } from '../ui/form/values';
import type { Choices, Problems } from '../ui/form/validate';

/** What a person has filled in, and what is wrong with it. */
export interface FormState {
  /** By part: `body`, `query`. */
  value: Value;
  choices: Choices;
  problems: Problems;
  banner: string[];
  /** Raised at reset: fields draw their text again. */
  round: number;
}

export type FormAction =
  | { type: 'set'; path: Path; value: Value }
  | { type: 'choose'; path: Path; index: number; value: Value }
  | { type: 'replace'; value: Value }
  | { type: 'check'; path: Path; problem: string | null }
  | { type: 'problems'; problems: Problems; banner: string[] }
  | { type: 'reset'; parts: Record<string, Node> };

/** Return an untouched form. */
export function newForm(parts: Record<string, Node>): FormState {
  const value: Value = {};
  for (const [name, node] of Object.entries(parts)) {
    value[name] = initial(node);
  }
  return { value, choices: {}, problems: {}, banner: [], round: 0 };
}

/** Return the form after one action. */
export function reduceForm(state: FormState, action: FormAction): FormState {
  switch (action.type) {
    case 'set':
      return { ...state, value: setAt(state.value, action.path, action.value), problems: without(state.problems, action.path) };
    case 'choose':
      return {
        ...state,
        value: setAt(state.value, action.path, action.value),
        choices: { ...state.choices, [keyOf(action.path)]: action.index },
        problems: without(state.problems, action.path)
      };
    case 'replace':
      return { ...state, value: action.value, choices: {}, problems: {}, banner: [], round: state.round + 1 };
    case 'check': {
      const key = keyOf(action.path);
      if (action.problem === (state.problems[key] ?? null)) {
        return state;
      }
      const { [key]: _, ...rest } = state.problems;
      return { ...state, problems: action.problem === null ? rest : { ...rest, [key]: action.problem } };
    }
    case 'problems':
      return { ...state, problems: action.problems, banner: action.banner };
    case 'reset':
      return { ...newForm(action.parts), round: state.round + 1 };
  }
}

/** An edit takes back what was said about the field and all within it. */
function without(problems: Problems, path: Path): Problems {
  const key = keyOf(path);
  return Object.fromEntries(Object.entries(problems).filter(([place]) => place !== key && !place.startsWith(key + '/')));
}
