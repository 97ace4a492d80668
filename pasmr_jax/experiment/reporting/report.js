// The report's script: reads values off the charts, and shows the sampled answers.
//
// What it shows of a model reaches the page as text nodes only (`make`), never as HTML; the page's
// policy (require-trusted-types-for) turns any other way into an error. Equations of the reward are
// in feedback/rewards.py, the layout of the data in report_reading.py: rollout.
'use strict';
(() => {
  const SHOWN_AT_ONCE = 20;

  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);

  // An element with attributes; children are elements or texts, null is left out.
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
    }
    for (const child of children.flat()) if (child !== null) element.append(child);
    return element;
  };

  // Characters without a picture of their own are shown as one: controls, and the marks that
  // reorder what follows them.
  const visible = (text) =>
    text
      .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
      .replace(/\u007f/g, '\u2421')
      .replace(/[\u0080-\u009f\u202a-\u202e\u2066-\u2069]/g, (c) =>
        `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}\u27e9`);

  // Model text, in its language and direction.
  const modelText = (tag, language, text) =>
    make(tag, {class: 'model', dir: 'auto', lang: language || null}, visible(text));

  const number = (value) => (value === null ? '-' : String(Number(value.toPrecision(4))));
  const signed = (value) => (value !== null && value > 0 ? `+${number(value)}` : number(value));
  const share = (value) => `${(100 * value).toFixed(0)} %`;
  const answerText = (answer) => (answer === null ? 'no answer' : visible(answer));
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? '' : 's'}`;

  // Charts: the values at the step that is pointed at, or moved to with the arrow keys.

  const readable = (figure, data) => {
    const svg = figure.querySelector('svg.plot');
    const cursor = svg.querySelector('.cursor');
    const readout = figure.querySelector('.readout');
    const width = svg.viewBox.baseVal.width;
    const span = data.last - data.first;
    const steps = [...new Set(data.lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    let place = steps.length - 1;

    const nearest = (values, wanted) => {
      let best = 0;
      values.forEach((value, index) => {
        if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
      });
      return best;
    };

    const tell = (step) => {
      const values = data.lines.flatMap((line) => {
        const index = nearest(line.steps, step);
        if (Math.abs(line.steps[index] - step) > span / 50) return [];
        const value = line.values[index];
        const shown = data.share ? `${(100 * value).toFixed(1)} %` : number(value);
        return [`${line.label} ${shown}`];
      });
      readout.textContent = `step ${Math.round(step)}: ${values.join(', ')}`;
      svg.setAttribute('aria-valuenow', step);
      svg.setAttribute('aria-valuetext', readout.textContent);
    };

    const show = () => {
      const step = steps[place];
      const x = width * (data.left + ((step - data.first) / span) * (data.right - data.left));
      cursor.setAttribute('x1', x);
      cursor.setAttribute('x2', x);
      tell(step);
    };

    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const along = (event.clientX - box.left) / box.width;
      const step = data.first + ((along - data.left) / (data.right - data.left)) * span;
      place = nearest(steps, step);
      show();
    };

    svg.setAttribute('tabindex', '0');
    svg.setAttribute('role', 'slider');
    svg.setAttribute('aria-valuemin', data.first);
    svg.setAttribute('aria-valuemax', data.last);
    tell(steps[place]);  // the last step, until another is pointed at
    svg.addEventListener('pointermove', point);
    svg.addEventListener('pointerdown', point);
    svg.addEventListener('focus', () => svg.matches(':focus-visible') && show());
    svg.addEventListener('keydown', (event) => {
      const last = steps.length - 1;
      const moves = {ArrowLeft: place - 1, ArrowDown: place - 1, ArrowRight: place + 1,
        ArrowUp: place + 1, PageDown: place - 10, PageUp: place + 10, Home: 0, End: last};
      if (!(event.key in moves)) return;
      event.preventDefault();
      place = Math.min(Math.max(moves[event.key], 0), last);
      show();
    });
  };

  const charts = parsed('chart-data');
  document.querySelectorAll('figure.lines').forEach((figure, index) => {
    readable(figure, charts[index]);
  });

  // Sampled answers: a form of filters, a status line, a list of questions.

  const browser = document.getElementById('answer-browser');
  if (!browser) return;
  const data = parsed('answer-data');
  const reward = (response) => response.terms[0];
  const languageName = (code) => data.languages[code] || code || 'unknown language';

  const distinct = (values) => [...new Set(values)];
  const choice = (name, label, options) =>
    make('label', {}, make('span', {}, label),
      make('select', {name}, make('option', {value: ''}, 'any'),
        options.map(([value, text]) => make('option', {value}, text))));
  const bound = (name, label) =>
    make('label', {}, make('span', {}, label),
      make('input', {name, type: 'number', step: 'any', inputmode: 'decimal'}));
  const several = (name, label, options) => (options.length > 1 ? choice(name, label, options) : null);

  const languages = distinct(data.questions.map((question) => question.language)).sort();
  const steps = distinct(data.questions.map((question) => question.step)).sort((a, b) => a - b);
  const form = make('form', {class: 'filters', 'aria-label': 'Filter the sampled answers'},
    several('run', 'Run', data.runs.map((name, index) => [String(index), name])),
    several('stage', 'Stage', distinct(data.questions.map((q) => q.stage)).map((s) => [s, s])),
    choice('language', 'Language', languages.map((code) => [code, languageName(code)])),
    choice('step', 'Step', steps.map((step) => [String(step), String(step)])),
    choice('failure', 'Failure', [['some', 'any failure'], ['none', 'no failure'],
      ...Object.entries(data.failures)]),
    choice('agreement', 'Answer', [['yes', 'is the label'], ['no', 'is not the label']]),
    bound('least', 'Reward from'),
    bound('most', 'Reward to'),
    make('label', {class: 'wide'}, make('span', {}, 'Text contains'),
      make('input', {name: 'text', type: 'search', dir: 'auto'})),
    make('button', {type: 'reset'}, 'Show all'));
  const status = make('p', {class: 'status', role: 'status'});
  const list = make('ol', {class: 'questions'});
  const more = make('button', {type: 'button', class: 'more'}, 'Show more');
  browser.append(form, status, list, more);

  const filters = () => {
    const value = (name) => (form.elements[name] ? form.elements[name].value : '');
    const limit = (name, otherwise) => (value(name) === '' ? otherwise : Number(value(name)));
    return {
      run: value('run'), stage: value('stage'), language: value('language'), step: value('step'),
      failure: value('failure'), agreement: value('agreement'),
      least: limit('least', -Infinity), most: limit('most', Infinity),
      text: value('text').toLowerCase(),
    };
  };

  const isLabel = (response) => response.answer !== null && response.answer === response.label;

  const failureMatches = (response, wanted) =>
    wanted === '' ||
    (wanted === 'some' && response.failures.length > 0) ||
    (wanted === 'none' && response.failures.length === 0) ||
    response.failures.includes(wanted);

  const rewardMatches = (response, wanted) => {
    if (wanted.least === -Infinity && wanted.most === Infinity) return true;
    const value = reward(response);
    // Rewards are 32-bit numbers: 0.1 is stored a little beside it.
    return value !== null && value >= wanted.least - 1e-6 && value <= wanted.most + 1e-6;
  };

  const responseMatches = (response, wanted) =>
    failureMatches(response, wanted.failure) && rewardMatches(response, wanted) &&
    (wanted.agreement === '' || (wanted.agreement === 'yes') === isLabel(response));

  const texts = (question) => [
    question.question, question.id,
    ...question.translations.map((translation) => translation.text),
    ...question.translations.flatMap((t) => t.solutions.map((solution) => solution[1])),
    ...question.responses.map((response) => response.reasoning),
  ];

  const questionMatches = (question, wanted) =>
    (wanted.run === '' || String(question.run) === wanted.run) &&
    (wanted.stage === '' || question.stage === wanted.stage) &&
    (wanted.language === '' || question.language === wanted.language) &&
    (wanted.step === '' || String(question.step) === wanted.step) &&
    (wanted.text === '' || texts(question).some((text) => text.toLowerCase().includes(wanted.text)));

  // [[question, numbers of its matching responses], ...]; a question without any is left out
  // unless nothing is asked of responses.
  const matching = (wanted) => {
    const asksResponses = wanted.failure !== '' || wanted.agreement !== '' ||
      wanted.least !== -Infinity || wanted.most !== Infinity;
    return data.questions
      .filter((question) => questionMatches(question, wanted))
      .map((question) => [question, question.responses.flatMap((response, index) =>
        responseMatches(response, wanted) ? [index] : [])])
      .filter(([, numbers]) => !asksResponses || numbers.length > 0);
  };

  const badge = (text, kind) => make('span', {class: `badge ${kind || ''}`}, text);

  // Votes of all pivot answers; a translation that several responses share counts for each.
  const pooledVotes = (question) => {
    const votes = new Map();
    for (const response of question.responses) {
      if (response.translation === null) continue;
      for (const [answer, , count] of question.translations[response.translation].solutions) {
        votes.set(answer, (votes.get(answer) || 0) + count);
      }
    }
    return [...votes].sort((a, b) => b[1] - a[1]);
  };

  const voteList = (question) => {
    const votes = pooledVotes(question);
    const total = votes.reduce((sum, [, count]) => sum + count, 0);
    return make('ul', {class: 'votes'}, votes.map(([answer, count]) => {
      const bar = make('span', {class: 'bar', 'aria-hidden': 'true'});
      bar.style.width = `${(100 * count) / total}%`;
      return make('li', {},
        make('bdi', {class: 'answer'}, answerText(answer)),
        make('span', {class: 'track', 'aria-hidden': 'true'}, bar),
        make('span', {}, `${count} of ${total}`,
          answer !== null && answer === question.label ? ' \u2713 label' : ''));
    }));
  };

  const solutionList = (question, translation) => {
    const total = translation.solutions.reduce((sum, solution) => sum + solution[2], 0);
    return make('ul', {class: 'solutions'}, translation.solutions.map(([answer, text, count]) =>
      make('li', {},
        make('details', {},
          make('summary', {}, make('bdi', {class: 'answer'}, answerText(answer)),
            ` ${count} of ${total}`,
            answer !== null && answer === question.label ? ' \u2713 label' : ''),
          modelText('p', question.pivot, text || '(no text)')))));
  };

  const responseCard = (question, index) => {
    const response = question.responses[index];
    const terms = response.terms.flatMap((value, place) => {
      const name = data.terms[place];
      if (value === null) return [];
      const shown = name.endsWith('advantage') ? signed(value) : number(value);
      return [make('div', {class: /^(reward|advantage)$/.test(name) ? 'main' : null},
        make('dt', {}, name), make('dd', {}, shown))];
    });
    return make('article', {class: `response ${isLabel(response) ? 'agrees' : 'differs'}`},
      make('h5', {}, `Response ${index + 1}`,
        isLabel(response) ? badge('\u2713 answer is the label', 'good') : null,
        response.failures.map((failure) => badge(`\u2717 ${data.failures[failure]}`, 'bad')),
        response.labelled ? null : badge('no confident label', 'plain')),
      make('p', {class: 'outcome'}, 'answer ', make('bdi', {class: 'answer'},
        answerText(response.answer)), ', label ', make('bdi', {class: 'answer'},
        response.label === null ? 'none' : visible(response.label)),
        response.confidence === null ? '' : ` (${share(response.confidence)} of its vote)`,
        response.tokens === null ? '' : `, ${plural(response.tokens, 'token')}`),
      make('dl', {class: 'terms'}, terms),
      modelText('p', question.language, response.reasoning || '(no text)'));
  };

  // Ranges of response numbers, from 1: 1-4, 7.
  const ranges = (numbers) => {
    const parts = [];
    for (const value of numbers) {
      const last = parts[parts.length - 1];
      if (last && last[1] === value - 1) last[1] = value;
      else parts.push([value, value]);
    }
    return parts.map(([from, to]) => (from === to ? `${from + 1}` : `${from + 1}\u2013${to + 1}`))
      .join(', ');
  };

  const translationBlock = (question, place, numbers) => {
    const of = question.responses.flatMap((response, index) =>
      response.translation === place ? [index] : []);
    const shown = of.filter((index) => numbers.includes(index));
    if (shown.length === 0) return null;
    const named = `${of.length === 1 ? 'response' : 'responses'} ${ranges(of)}`;
    const cards = make('div', {class: 'responses'},
      shown.map((index) => responseCard(question, index)));
    if (place === null) {
      return make('section', {class: 'translation'},
        make('h4', {}, 'Without a translation', make('span', {}, named)), cards);
    }
    const translation = question.translations[place];
    return make('section', {class: 'translation'},
      make('h4', {}, `Translation ${place + 1} of ${question.translations.length}`,
        make('span', {}, named)),
      modelText('p', question.pivot, translation.text),
      translation.solutions.length === 0
        ? make('p', {class: 'nothing'}, 'It was not solved in the pivot language.')
        : [make('p', {class: 'small'}, 'Answers to it in the pivot language:'),
          solutionList(question, translation)],
      cards);
  };

  const questionBody = (question, numbers) => {
    const places = [...question.translations.keys(), null];
    const votes = pooledVotes(question);
    return make('div', {class: 'body'},
      make('h4', {}, 'Question', make('span', {}, languageName(question.language))),
      modelText('p', question.language, question.question),
      make('h4', {}, 'Vote of all pivot answers', make('span', {}, question.label === null
        ? 'no label' : ['label ', make('bdi', {}, visible(question.label)),
          question.confidence === null ? '' : `, confidence ${share(question.confidence)}`])),
      votes.length ? voteList(question) : make('p', {class: 'nothing'}, 'No pivot answers.'),
      numbers.length < question.responses.length
        ? make('p', {class: 'small'},
          `${numbers.length} of ${plural(question.responses.length, 'response')} match.`) : null,
      places.map((place) => translationBlock(question, place, numbers)));
  };

  const questionItem = ([question, numbers]) => {
    const rewards = question.responses.map(reward).filter((value) => value !== null);
    const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
    const failed = question.responses.filter((response) => response.failures.length > 0).length;
    const details = make('details', {class: 'question'},
      make('summary', {},
        make('span', {class: 'where'},
          data.runs.length > 1 ? badge(data.runs[question.run], 'plain') : null,
          badge(languageName(question.language), 'plain'),
          make('span', {}, `step ${question.step}`),
          make('span', {}, `mean reward ${number(mean)}`),
          failed ? badge(`${failed} of ${question.responses.length} with failures`, 'bad') : null),
        make('span', {class: 'model lead', dir: 'auto', lang: question.language || null},
          visible(question.question))));
    details.addEventListener('toggle', () => {
      if (details.open && !details.querySelector('.body')) {
        details.append(questionBody(question, numbers));
      }
    });
    return make('li', {}, details);
  };

  let found = [];
  const showMore = () => {
    const first = list.children.length;
    list.append(...found.slice(first, first + SHOWN_AT_ONCE).map(questionItem));
    more.hidden = list.children.length >= found.length;
    return list.children[first];
  };
  const refresh = () => {
    found = matching(filters());
    list.replaceChildren();
    showMore();
    const responses = found.reduce((sum, [, numbers]) => sum + numbers.length, 0);
    status.textContent = found.length === 0 ? 'Nothing matches.'
      : `${found.length} of ${plural(data.questions.length, 'question')}, with ` +
        `${plural(responses, 'matching response')}.` +
        (data.left_out ? ` ${data.left_out} more are in rollouts.jsonl only, to keep the page small.`
          : '');
  };
  form.addEventListener('input', refresh);
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('reset', () => setTimeout(refresh));
  more.addEventListener('click', () => showMore().querySelector('summary').focus());
  refresh();
})();
