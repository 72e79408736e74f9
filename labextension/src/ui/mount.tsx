// Putting a surface into an element: a shadow root with our styles, and no key press that leaves it.
import { render, type ComponentType } from 'preact';
import components from './style/components.css';
import tokens from './style/tokens.css';
import type { Mounted } from './host';

let sheet: CSSStyleSheet | null = null;

function styles(): CSSStyleSheet {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(tokens + components);
  }
  return sheet;
}

/** Draw a component into a host element. */
export function mount<P extends object>(component: ComponentType<P>, host: HTMLElement, props: P): Mounted<P> {
  const Component = component;
  const shadow = host.shadowRoot ?? host.attachShadow({ mode: 'open' });
  shadow.adoptedStyleSheets = [styles()];
  // JupyterLab would take Enter, Ctrl Z and single letters for itself; the attribute alone is not enough.
  host.dataset['lmSuppressShortcuts'] = 'true';
  const stop = (event: Event): void => event.stopPropagation();
  host.addEventListener('keydown', stop);
  const draw = (next: P): void => render(<Component {...next} />, shadow);
  draw(props);
  return {
    update: draw,
    unmount: () => {
      render(null, shadow);
      host.removeEventListener('keydown', stop);
    }
  };
}
