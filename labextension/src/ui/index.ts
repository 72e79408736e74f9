// The one bundle: what the JupyterLab extension, the widget and the web pages call.
import { HttpTransport, type Fetcher } from '../api/http';
import { ApiError } from '../api/transport';
import { Card, type CardProps } from './card/Card';
import type { Host, Mounted } from './host';
import { Logs, type LogsProps } from './logs/Logs';
import { mount } from './mount';
import { Panel, type PanelProps } from './panel/Panel';
import { PlaygroundTab, type PlaygroundTabProps } from './playground/Standalone';

export { mountPage } from '../page/page';
export { ApiError, HttpTransport };
export type { CardProps, Fetcher, Host, LogsProps, Mounted, PanelProps, PlaygroundTabProps };

/** The card under a cell. */
export function mountStatusCard(host: HTMLElement, props: CardProps): Mounted<CardProps> {
  return mount(Card, host, props);
}

/** The playground in a tab of its own. */
export function mountPlayground(host: HTMLElement, props: PlaygroundTabProps): Mounted<PlaygroundTabProps> {
  return mount(PlaygroundTab, host, props);
}

/** The side panel. */
export function mountPanel(host: HTMLElement, props: PanelProps): Mounted<PanelProps> {
  return mount(Panel, host, props);
}

/** The log of an app. */
export function mountLogs(host: HTMLElement, props: LogsProps): Mounted<LogsProps> {
  return mount(Logs, host, props);
}
