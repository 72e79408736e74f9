// Generated from fal_notebook/wire.py by labextension/scripts/wire_types.py: do not edit.

export const MIME_TYPE = 'application/vnd.fal-notebook.v1+json';

/** All that card, panel and playground show of one app. */
export interface AppDetail {
  alias: string;
  revision: string | null;
  auth_mode: AuthMode;
  keep_alive: number;
  max_concurrency: number;
  max_multiplexing: number;
  active_runners: number;
  min_concurrency: number;
  concurrency_buffer: number;
  concurrency_buffer_perc: number;
  scaling_delay: number;
  machine_types: string[];
  request_timeout: number;
  startup_timeout: number;
  valid_regions: string[];
  environment_name: string;
  request_start_timeout: number | null;
  owner: string;
  endpoint_id: string;
  ephemeral: boolean;
  state: AppState;
  state_reason: string | null;
  split_revision: string | null;
  split_percent: number;
  urls: Urls;
  deployed_at: string;
  stale_secrets: string[];
  class_name: string;
  endpoints: EndpointSpec[];
  openapi: string;
  requirements: string[][];
  captures: Capture[];
  cell: CellRef | null;
  notebook: string | null;
  deployment: Deployment | null;
  runners: RunnerInfo[];
  served: number;
  event: number;
}

/** What an App class says of itself; made by `fal_notebook.app.describe`. */
export interface AppSpec {
  class_name: string;
  app_name: string;
  app_auth: AuthMode | null;
  kind: 'virtualenv';
  python_version: string;
  requirements: string[][];
  machine_types: string[];
  num_gpus: number | null;
  scale: ScaleSpec;
  termination_grace_s: number;
  skip_retry_conditions: string[];
  retry_config: Record<string, number>;
  secrets: string[] | null;
  endpoints: EndpointSpec[];
  openapi: string;
}

/** What an app does for its callers now. */
export type AppState = 'deploying' | 'idle' | 'starting' | 'serving' | 'failing';

/** An app as `apps list` shows it; fields of fal's CLI first. */
export interface AppSummary {
  alias: string;
  revision: string | null;
  auth_mode: AuthMode;
  keep_alive: number;
  max_concurrency: number;
  max_multiplexing: number;
  active_runners: number;
  min_concurrency: number;
  concurrency_buffer: number;
  concurrency_buffer_perc: number;
  scaling_delay: number;
  machine_types: string[];
  request_timeout: number;
  startup_timeout: number;
  valid_regions: string[];
  environment_name: string;
  request_start_timeout: number | null;
  owner: string;
  endpoint_id: string;
  ephemeral: boolean;
  state: AppState;
  state_reason: string | null;
  split_revision: string | null;
  split_percent: number;
  urls: Urls;
  deployed_at: string;
  stale_secrets: string[];
}

/** Who may call an app. Source: fal, "Authentication Modes". */
export type AuthMode = 'private' | 'public' | 'shared';

/** All that is known of a bundle without unpickling it. */
export interface BundleManifest {
  identity: string;
  is_volatile: boolean;
  payload_sha256: string;
  payload_bytes: number;
  buffers: string[];
  python_version: string;
  versions: Record<string, string>;
  captures: Capture[];
  imports: string[];
  local_modules: LocalModule[];
  source: string;
  source_sha256: string;
  sources: SourceText[];
  cell: CellRef | null;
}

/** One line of the request log: a call or a queued request that has ended. */
export interface CallInfo {
  request_id: string;
  app: string;
  path: string;
  method: string;
  caller: string | null;
  key_id: string | null;
  kind: 'sync' | 'stream' | 'realtime' | 'queue';
  revision: string | null;
  runner: string | null;
  attempts: number;
  status: number;
  error_type: string | null;
  started_at: string;
  ended_at: string;
  queued_ms: number;
  cold_start_ms: number;
  inference_ms: number;
  bytes_in: number;
  bytes_out: number;
}

/** One global or closure variable that the App uses and that is shipped by value. */
export interface Capture {
  name: string;
  kind: string;
  size_bytes: number;
  digest: string;
  used_by: string[];
  cell: CellRef | null;
}

/** Which cell something came from. */
export interface CellRef {
  execution_count: number | null;
  cell_id: string | null;
  line: number | null;
}

/** A deployment as it would be; nothing of it has happened. */
export interface DeployPlan {
  plan_id: string;
  expires_at: string;
  app_name: string;
  endpoint_id: string;
  environment: string;
  is_required: boolean;
  changed: boolean;
  production: Production | null;
  source: PlannedSource;
  auth: AuthMode;
  strategy: Strategy;
  detach: boolean;
  reset_scale: boolean;
  message: string | null;
  image: PlannedImage;
  setup_s: number | null;
  setup_starts: number;
  captures: PlannedCapture[];
  settings: PlannedSetting[];
  endpoints: EndpointSpec[];
  idle_runners: number;
  idle_machine: string;
  keep_alive_s: number;
  idle_price_per_hour: number;
  lacking: string | null;
}

/** Body of `POST /api/v1/deployments`; blobs named here were uploaded before. */
export interface DeployRequest {
  spec: AppSpec;
  manifest: BundleManifest;
  app_name: string | null;
  environment: string;
  auth: AuthMode | null;
  strategy: Strategy;
  ephemeral: boolean;
  session_id: string | null;
  dev_suffix: string | null;
  no_cache: boolean;
  force: boolean;
  message: string | null;
  annotations: Record<string, string>;
  detach: boolean;
  reset_scale: boolean;
  notebook: string | null;
}

/** One act of deploying and how far it has come. */
export interface Deployment {
  deployment_id: string;
  app_name: string;
  endpoint_id: string;
  environment: string;
  revision: string | null;
  changed: boolean;
  ephemeral: boolean;
  state: DeploymentState;
  kind: 'deploy' | 'set_rev' | 'split' | 'restart';
  strategy: Strategy;
  detach: boolean;
  auth: AuthMode;
  image: ImageInfo | null;
  phases: DeploymentPhase[];
  error: ErrorBody | null;
  urls: Urls;
  previous: string | null;
  runner_id: string | null;
  calls: number | null;
  failed_calls: number | null;
  created_at: string;
  switched_at: string | null;
  ended_at: string | null;
  event: number;
}

/** One step of a deployment's track: build, start, setup, ready. */
export interface DeploymentPhase {
  name: 'build' | 'start' | 'setup' | 'ready';
  state: PhaseState;
  began_at: string | null;
  duration_s: number | null;
}

/** Where a deployment stands; the last five are final. */
export type DeploymentState = 'building' | 'verifying' | 'switching' | 'draining' | 'rolling_out' | 'done' | 'aborted' | 'cancelled' | 'superseded' | 'failed';

/** One `@endpoint` method. */
export interface EndpointSpec {
  path: string;
  method: string;
  is_async: boolean;
  protocol: 'http' | 'realtime' | 'websocket';
  line: number | null;
}

/** JSON form of an error; see `errors.FalError.to_dict`. */
export interface ErrorBody {
  code: string;
  message: string;
  fix: string | null;
  where: Record<string, unknown> | null;
  traceback: string | null;
  details: Record<string, unknown>;
}

/** A numbered fact. Numbers are gapless and in commit order. */
export interface Event {
  n: number;
  at: string;
  subject: string;
  kind: string;
  app: string | null;
  data: Record<string, unknown>;
}

/** A built environment. */
export interface ImageInfo {
  hash: string;
  cached: boolean;
  size_bytes: number | null;
}

/** Who a backend is: answer of `GET /api/v1/instance`. */
export interface Instance {
  instance_id: string;
  version: string;
  api_version: number;
  owner: string;
  url: string;
  python: string;
  pid: number;
  proof: string | null;
}

/** A module beside the notebook that is shipped by value. */
export interface LocalModule {
  name: string;
  files: number;
  size_bytes: number;
}

/** One line that a runner wrote, or one line of a build. */
export interface LogLine {
  offset: number;
  at: string;
  stream: 'stdout' | 'stderr' | 'build' | 'system';
  text: string;
  runner_id: string | null;
  request_id: string | null;
}

/** An entry of the machine catalogue. */
export interface MachineType {
  name: string;
  cpu: number;
  memory_mb: number;
  gpu: string | null;
  gpus: number;
  is_share: boolean;
  available: boolean;
  count: number;
  free: number;
}

/** Mark of one step in a deployment's track. */
export type PhaseState = 'next' | 'now' | 'done' | 'cached' | 'failed';

/** One variable that travels with the class. */
export interface PlannedCapture {
  name: string;
  state: 'same' | 'changed' | 'new' | 'gone';
  size_bytes: number | null;
  size_before: number | null;
  cell: CellRef | null;
}

/** The environment that the runners will have. */
export interface PlannedImage {
  hash: string;
  is_cached: boolean;
  size_bytes: number | null;
  layers: string[][];
  uses_cache: boolean;
}

/** One row of the effective difference; values as people read them. */
export interface PlannedSetting {
  name: string;
  title: string;
  now: string;
  after: string;
  source: 'code' | 'inherited' | 'default';
  not_applied: string | null;
}

/** Where the class stands and how it differs from the one that serves. */
export interface PlannedSource {
  class_name: string;
  notebook: string | null;
  cell: CellRef | null;
  added: number;
  removed: number;
  diff: string;
}

/** What serves now. */
export interface Production {
  revision: string;
  author: string | null;
  created_at: string;
  auth: AuthMode;
}

/** A runner as `runners list` shows it; fields of fal's CLI first. */
export interface RunnerInfo {
  runner_id: string;
  alias: string;
  revision: string;
  state: RunnerState;
  machine_type: string;
  in_flight_requests: number;
  uptime_seconds: number;
  expiration_countdown: number | null;
  replacement: string;
  node: string;
  pid: number | null;
  start_kind: 'fork' | 'spawn' | null;
  start_reason: string | null;
  sandbox: string;
  phases: Record<string, number>;
  started_at: string | null;
  ended_at: string | null;
  reason: string | null;
  error: ErrorBody | null;
  stale_secrets: string[];
}

/** A runner's state in fal's words. */
export type RunnerState = 'PENDING' | 'DOCKER_PULL' | 'SETUP' | 'IDLE' | 'RUNNING' | 'DRAINING' | 'TERMINATING' | 'TERMINATED' | 'CRASH_BACKOFF';

/** Settings of an app that its owner may change without a new revision; None: not given in code. */
export interface ScaleSpec {
  keep_alive: number | null;
  min_concurrency: number | null;
  max_concurrency: number | null;
  concurrency_buffer: number | null;
  concurrency_buffer_perc: number | null;
  scaling_delay: number | null;
  max_multiplexing: number | null;
  request_timeout: number | null;
  request_start_timeout: number | null;
  startup_timeout: number | null;
  machine_types: string[] | null;
  valid_regions: string[] | null;
}

/** The life of a kernel or terminal that owns temporary apps. */
export interface SessionInfo {
  session_id: string;
  pid: number | null;
}

/** Body of `POST /api/v1/sessions`; on the unix socket the caller's pid is taken from the socket. */
export interface SessionRequest {
  kind: 'kernel' | 'terminal';
  label: string;
}

/** Base of what becomes rows as it was sent. */
export interface Shipped {

}

/** Text that code of a bundle was compiled from, so that a traceback on a runner shows its lines. */
export interface SourceText {
  filename: string;
  text: string;
  cell: CellRef | null;
}

/** How an alias moves to a new revision. Source: fal, "Rollout Strategies". */
export type Strategy = 'rolling' | 'recreate';

/** What was sent of a bundle before its plan, or its deployment, was asked for. */
export interface Uploaded {
  parts: number;
  new_parts: number;
  new_bytes: number;
  duration_s: number;
}

/** Where an app is called, on the caller's own base URL. */
export interface Urls {
  run: string;
  queue: string;
  playground: string;
}

/** Base: frozen values, unknown fields ignored. */
export interface Wire {

}
