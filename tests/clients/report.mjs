// What the programs beside this one print: one JSON document, what each of their scenarios gave.

export async function report(...scenarios) {
  const outcomes = {};
  for (const scenario of scenarios) {
    outcomes[scenario.name] = await outcome(scenario);
  }
  console.log(JSON.stringify(outcomes));
}

// What an error is: its class, and what it says.
export function raised(error) {
  return { raised: error.constructor.name, message: error.message, traceback: error.stack };
}

async function outcome(scenario) {
  try {
    return await scenario();
  } catch (error) {
    return raised(error);
  }
}
