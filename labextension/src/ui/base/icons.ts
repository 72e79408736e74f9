// Icon drawings, 16 × 16, stroked with the text's colour. Each status has a shape of its own.
const CIRCLE = '<circle cx="8" cy="8" r="6.25"/>';

export const ICONS = {
  check: CIRCLE + '<path d="M5.2 8.2l2 2 3.7-4.2"/>',
  tick: '<path d="M3.5 8.5l3 3 6-6.8"/>',
  spin: '<circle cx="8" cy="8" r="6" opacity=".3"/><path d="M8 2a6 6 0 0 1 6 6"/>',
  wait: CIRCLE + '<path d="M8 4.6V8l2.3 1.5"/>',
  warn: '<path d="M8 2.2l6.3 11.2H1.7z"/><path d="M8 6.4v3.2M8 11.5v.1"/>',
  err: '<path d="M5.4 1.8h5.2l3.6 3.6v5.2l-3.6 3.6H5.4l-3.6-3.6V5.4z"/><path d="M5.9 5.9l4.2 4.2M10.1 5.9l-4.2 4.2"/>',
  off: CIRCLE + '<rect x="5.9" y="5.9" width="4.2" height="4.2" fill="currentColor" stroke="none"/>',
  pause: '<circle cx="8" cy="8" r="6.25" stroke-dasharray="2.2 2.2"/>',
  offline: '<path d="M4.6 12.3a3 3 0 0 1-.2-6A4 4 0 0 1 11.7 7a2.7 2.7 0 0 1 1 5"/><path d="M2 2l12 12"/>',
  info: CIRCLE + '<path d="M8 7.3v3.6M8 5v.1"/>',
  play: '<path d="M4.5 2.8v10.4L13 8z" fill="currentColor" stroke="none"/>',
  stop: '<rect x="3.8" y="3.8" width="8.4" height="8.4" rx=".8"/>',
  logs: '<path d="M2.5 3.5h11M2.5 6.5h8M2.5 9.5h11M2.5 12.5h6"/>',
  copy: '<rect x="5.5" y="5.5" width="8" height="8" rx="1"/><path d="M10.5 5.5v-3h-8v8h3"/>',
  open: '<path d="M9 2.5h4.5V7M13.2 2.8L7.5 8.5M11.5 9.5v4h-9v-9h4"/>',
  right: '<path d="M6 3.8L10.2 8 6 12.2"/>',
  down: '<path d="M3.8 6L8 10.2 12.2 6"/>',
  search: '<circle cx="7" cy="7" r="4.3"/><path d="M10.3 10.3l3.4 3.4"/>',
  refresh: '<path d="M13 8a5 5 0 1 1-1.6-3.7M13 2v3h-3"/>',
  globe: '<circle cx="8" cy="8" r="6.2"/><path d="M1.8 8h12.4M8 1.8c4.3 3.6 4.3 8.8 0 12.4M8 1.8c-4.3 3.6-4.3 8.8 0 12.4"/>',
  image: '<rect x="1.8" y="2.8" width="12.4" height="10.4" rx="1"/><circle cx="5.4" cy="6.2" r="1.2"/><path d="M2.5 12l3.8-3.6 2.4 2.2 2.3-2.8 3 3.4"/>',
  audio: '<path d="M2 6.5v3M5 4v8M8 2v12M11 5v6M14 6.5v3"/>',
  video: '<rect x="1.8" y="3.2" width="12.4" height="9.6" rx="1"/><path d="M6.6 5.8v4.4L10.4 8z" fill="currentColor" stroke="none"/>',
  lr: '<path d="M6 4.5L2.5 8 6 11.5M10 4.5L13.5 8 10 11.5"/>',
  plug: '<path d="M5.5 1.8v3.4M10.5 1.8v3.4M3.5 5.2h9v2.3a4.5 4.5 0 0 1-9 0zM8 12v2.4"/>',
  up: '<path d="M8 13.2V3M3.8 7.2L8 3l4.2 4.2"/>',
  file: '<path d="M3.5 1.8h6l3 3v9.4h-9zM9.3 2v3h3"/>',
  text: '<path d="M3 3.5h10M8 3.5v9.5"/>',
  plus: '<path d="M8 3v10M3 8h10"/>',
  x: '<path d="M4 4l8 8M12 4l-8 8"/>',
  cell: '<rect x="1.8" y="3" width="12.4" height="10" rx="1"/><path d="M4.2 6.2l1.8 1.7-1.8 1.7M7.6 9.8h3.6"/>',
  app: '<path d="M8 1.8l5.6 3.1v6.2L8 14.2l-5.6-3.1V4.9z"/><path d="M2.6 5L8 8l5.4-3M8 8v6"/>',
  link: '<path d="M6.5 9.5l3-3M7 4.7l1.3-1.3a3 3 0 0 1 4.3 4.3L11.3 9M9 11.3l-1.3 1.3a3 3 0 0 1-4.3-4.3L4.7 7"/>',
  lock: '<rect x="3.3" y="7" width="9.4" height="6.6" rx="1"/><path d="M5.4 7V5a2.6 2.6 0 0 1 5.2 0v2"/>',
  machine: '<rect x="1.8" y="2.8" width="12.4" height="4.4" rx=".8"/><rect x="1.8" y="8.8" width="12.4" height="4.4" rx=".8"/><path d="M4.3 5h.1M4.3 11h.1"/>',
  dl: '<path d="M8 2v7.8M4.8 6.8L8 10l3.2-3.2M2.5 12.8h11"/>',
  deploy: '<path d="M8 10.5V2.2M4.8 5.2L8 2l3.2 3.2M2.5 10v3.5h11V10"/>'
} as const;

export type IconName = keyof typeof ICONS;
