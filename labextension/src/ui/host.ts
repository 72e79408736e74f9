// What the place around a surface can do for it; absent acts have no button.
import type { Transport } from '../api/transport';

/** Where in the notebook an error points. */
export interface CellPlace {
  cell_id: string;
  line: number | null;
}

export interface Host {
  /** The transport of a backend by its id; null where this place knows no such backend. */
  transport(instance: string): Promise<Transport | null>;
  openPlayground?(instance: string, alias: string): void;
  openPage?(url: string): void;
  goTo?(place: CellPlace): void;
  insertCell?(text: string): void;
}

/** A drawn surface. */
export interface Mounted<P> {
  update(props: P): void;
  unmount(): void;
}
