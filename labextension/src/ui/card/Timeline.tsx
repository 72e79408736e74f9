// The timeline of a deployment: a list of steps with a bar each, and below it who answered.
import type { JSX } from 'preact';
import type { Course } from '../../state/rollout';
import { Icon } from '../base/parts';
import type { IconName } from '../base/icons';
import { shortId, tickText } from '../words';
import { answersText, type Answer, type Step, type StepState, type Timeline } from './steps';

const LOOK: Record<StepState, { icon: IconName; tone: string; said: string }> = {
  done: { icon: 'tick', tone: 'ok', said: 'done' },
  now: { icon: 'spin', tone: 'busy', said: 'so far' },
  next: { icon: 'pause', tone: 'idle', said: 'not begun' },
  failed: { icon: 'err', tone: 'err', said: 'failed' },
  stopped: { icon: 'off', tone: 'idle', said: 'stopped' },
  missed: { icon: 'x', tone: 'idle', said: '' }
};

export function TimelineView({ timeline, course }: { timeline: Timeline; course: Course }): JSX.Element {
  const { span, tick } = timeline;
  return (
    <ol class="fal-tl" aria-label="Timeline of the rollout">
      <li class="fal-tl-axis" aria-hidden="true">
        <span>
          {[0, 1, 2, 3, 4].map(index => (
            <i key={index} style={{ left: `${index * 25}%` }}>
              {tickText(index * tick)}
            </i>
          ))}
        </span>
      </li>
      {timeline.steps.map(step => (
        <StepRow key={step.name} step={step} span={span} />
      ))}
      <li class="fal-tl-answers">
        <span class="fal-tl-name fal-strong">
          Answers from<span class="fal-sr"> {answersText(timeline, course)}</span>
        </span>
        <span class="fal-tl-lane" aria-hidden="true">
          {timeline.answers.map(answer => (
            <AnswerBar key={answer.revision} answer={answer} span={span} />
          ))}
          {!timeline.answers.length && <span class="fal-tl-none">{answersText(timeline, course)}</span>}
        </span>
        <span class="fal-tl-end" />
      </li>
    </ol>
  );
}

function StepRow({ step, span }: { step: Step; span: number }): JSX.Element {
  const { icon, tone, said } = LOOK[step.state];
  const isLoud = step.state === 'now' || step.state === 'failed';
  const isQuiet = step.state === 'next' || step.state === 'missed' || step.state === 'stopped';
  return (
    <li data-step={step.name} data-state={step.state}>
      <span class={`fal-tl-name ${isLoud || isQuiet ? `fal-${tone}` : ''}`}>
        <span class={`fal-${tone}`}>
          <Icon name={icon} small spin={step.state === 'now'} />
        </span>
        <span class="fal-trunc">{step.name}</span>
      </span>
      <span class="fal-tl-lane">
        {step.begin !== null && step.end !== null && <i class={`is-${tone}`} style={place(step.begin, step.end, span)} />}
        {step.state === 'missed' && <span class="fal-tl-none">not reached</span>}
      </span>
      <span class="fal-tl-end">
        {step.note}
        {said && <span class="fal-sr"> {said}</span>}
      </span>
    </li>
  );
}

function AnswerBar({ answer, span }: { answer: Answer; span: number }): JSX.Element {
  return (
    <b class={answer.isNew ? 'is-new' : ''} style={place(answer.begin, answer.end, span)} title={`revision ${answer.revision}`}>
      <span class="fal-trunc">
        <span class="fal-tl-word">revision </span>
        {shortId(answer.revision)}
      </span>
    </b>
  );
}

function place(begin: number, end: number, span: number): { left: string; width: string } {
  const part = (s: number): number => Math.round(Math.min(1, Math.max(0, s / span)) * 10_000) / 100;
  return { left: `${part(begin)}%`, width: `${part(end) - part(begin)}%` };
}
